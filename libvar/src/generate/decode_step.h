#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <list>
#include <memory>
#include <optional>
#include <vector>

#include "decoder/decoder.h"
#include "decoder/kv_cache.h"
#include "device_graph.h"
#include "generate/sampler.h"
#include "libvar/request.h"

namespace libvar {

/// The settings that all sequences of a step share; the others are SequenceRows::params.
VarParams shared_settings(const VarParams& var);

/// A sequence as a step finds it.
struct StepSequence {
  std::int64_t token = 0;     ///< chosen last, not yet fed
  std::int64_t place = 0;     ///< in its cache: the positions before it
  std::int64_t position = 0;  ///< its rotary position
  std::uint64_t draws = 0;    ///< tokens chosen before the next
  VarParams var;              ///< first_layer filled in
  GenerationParams generation;
};

/// One token of each of several sequences at a time: embeds, runs the decoder, chooses.
///
/// All state that changes from step to step (tokens, places, lengths, positions, draws, counts) is
/// on the device, in buffers allocated once, so that a step asks nothing of the host; the host
/// reads the tokens afterwards. On CUDA a step is captured in a graph the second time that it is
/// needed in its form and replayed from then on; the results are the same, because the same work is
/// done. The number of keys that a captured step may see is rounded up: what lies behind a
/// sequence's length changes no bit (see attention()).
class DecodeStep {
 public:
  /// @param decoder  must outlive this
  /// @param batch    most sequences
  /// @param graphs   capture; on the CPU a capture does what it is made of (tests)
  DecodeStep(const Decoder& decoder, std::int64_t batch, bool graphs);

  /// Takes sequences over from the host.
  /// @param cache  of these sequences, in their order, with room for what is generated; settings of
  ///               those whose VAR is on agree in shared_settings()
  void begin(const std::vector<StepSequence>& sequences, const KvCache& cache);

  /// Feeds each sequence's token and chooses the next.
  /// @return  [B] tokens; -1 where the logits are not finite
  const std::vector<std::int64_t>& run();

  /// [B, V] of the last step; overwritten by the next.
  const at::Tensor& logits() const { return logits_; }

  /// Changed (head, row) pairs since begin or the last call: [layers, B] int64.
  at::Tensor take_selected_rows();

  /// Waits for what runs, and lets go of the cache. Captured steps stay, for a later begin with
  /// buffers at the same places.
  void end();

 private:
  /// What a step computes with; a captured one keeps its own.
  struct Plan {
    KvCache cache;
    std::int64_t batch = 0;
    SequenceRows rows;  // longest: most keys
    VarParams settings;
    ChoiceMethod method = ChoiceMethod::kGreedy;
  };

  struct Captured {
    VarParams settings;
    ChoiceMethod method;
    std::int64_t batch, most_keys;
    std::vector<bool> changes_layers;
    at::Tensor logits;                   // undefined until it was captured
    std::unique_ptr<DeviceGraph> graph;  // null: was done once, directly
  };

  void write_settings(const std::vector<StepSequence>& sequences);
  void write_draws(const std::vector<StepSequence>& sequences, std::int64_t most);
  at::Tensor compute(const Plan& plan);
  void run_captured(const Plan& plan);
  Captured& find(const Plan& plan);

  const Decoder* decoder_;
  std::int64_t max_batch_;
  bool graphs_;
  WorkQueue queue_;
  std::optional<Plan> plan_;
  std::int64_t longest_ = 0;          // of the sequences, before the next step
  std::vector<std::int64_t> layout_;  // of the cache that the captured steps were captured with
  std::list<Captured> captured_;      // used last first; in place: graphs point at their logits

  // On the device; the first B of each.
  at::Tensor tokens_;         // [max B] int64
  at::Tensor counters_;       // [3, max B] int64: places, positions, draws
  at::Tensor lengths_;        // [max B] int32
  at::Tensor params_;         // [layers, max B, 4] float32
  at::Tensor may_change_;     // [layers, max B] int64
  at::Tensor selected_rows_;  // [layers, max B] int64
  at::Tensor uniforms_;       // [max B, draws] float64: numbers for each draw
  ChoiceSettings choice_;
  at::Tensor host_tokens_;  // pinned
  std::vector<std::int64_t> chosen_;
  at::Tensor logits_;
};

}  // namespace libvar
