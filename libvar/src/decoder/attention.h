#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "decoder/config.h"
#include "decoder/kv_cache.h"
#include "decoder/rotary.h"
#include "libvar/redistribution_rule.h"
#include "weights.h"

namespace libvar {

/// What one layer attends with, once its keys and values are in the cache.
struct AttentionView {
  std::int64_t layer = 0;
  std::int64_t past = 0;           ///< position of the first row
  const at::Tensor& query;         ///< [B, H, Q, Dh], rotated
  const KvCache& cache;            ///< keys, values and sink scores of positions below past + Q
  double scale = 1.0;              ///< multiplies query * key
  const RedistributionRule& rule;  ///< HeadRule::kNone where the layer is not changed
  const at::Tensor& out_weight;    ///< [D, H * Dh] of the output projection
};

using AttentionObserver = std::function<void(const AttentionView&)>;

/// One row of each of several sequences whose lengths differ; tensors lie on the device.
struct SequenceRows {
  at::Tensor places;         ///< [B] int64: where each row goes in its sequence's cache
  at::Tensor lengths;        ///< [B] int32: places + 1
  std::int64_t longest = 0;  ///< the largest of lengths, or more
  at::Tensor params;  ///< [layers, B, 4] float32: see attention(); p is 0 where nothing may change
  at::Tensor may_change;             ///< [layers, B] int64: 1 where p may be above 0
  std::vector<bool> changes_layers;  ///< any of its row in may_change
};

/// What all layers of one pass share.
struct AttentionPass {
  const SequenceRows* sequences = nullptr;  ///< or null: the rows follow the cache's last position
  std::int64_t past = 0;        ///< positions in the cache before this pass; not with sequences
  at::Tensor places;            ///< [B] int64: where the first row of each sequence is stored
  std::int64_t plain_rows = 0;  ///< leading rows that no setting could select
  RotaryAngles angles;
  const AttentionObserver* observer = nullptr;  ///< or null
  /// What the sources of a changed row lose goes nowhere, in place of to its targets, which must
  /// be all other classes.
  bool drops_source_mass = false;
};

/// Self-attention of one decoder layer.
class SelfAttention {
 public:
  /// @param weights  names relative to the layer's attention ("q_proj.weight")
  SelfAttention(const DecoderConfig& config, std::int64_t layer, const WeightReader& weights);

  /// Stores keys, values and sink scores in the cache and attends.
  ///
  /// Rows below pass.plain_rows are plain
  /// causal attention: PyTorch's where nothing lies before them, else libvar's own with no row
  /// selected, because PyTorch's causal mask is aligned at the top left. All other rows run in
  /// libvar's own kernel, whatever the rule.
  /// @param normed    [B, Q, D]; with pass.sequences Q is 1
  /// @param phi       [B, Q] float32: sink scores of the rows, as they are to be stored
  /// @param rule      HeadRule::kNone where the layer is not to be changed
  /// @param selected  [B, H, Q] bool, false everywhere, or undefined; set where a row was changed
  /// @return          [B, Q, D]
  at::Tensor operator()(const at::Tensor& normed, const at::Tensor& phi, const AttentionPass& pass,
                        const RedistributionRule& rule, const at::Tensor& selected,
                        KvCache& cache) const;

 private:
  at::Tensor attend_plain(const at::Tensor& query, const AttentionPass& pass,
                          const KvCache& cache) const;
  at::Tensor attend_sequences(const at::Tensor& query, const SequenceRows& sequences,
                              const RedistributionRule& rule, const at::Tensor& selected,
                              const KvCache& cache) const;
  at::Tensor attend_redistributed(const at::Tensor& query, std::int64_t length,
                                  const RedistributionRule& rule, const at::Tensor& selected,
                                  bool drops_source_mass, const KvCache& cache) const;

  DecoderConfig config_;
  std::int64_t layer_;
  double scale_;
  ProjectionGroup query_key_value_;
  Linear out_;
};

}  // namespace libvar
