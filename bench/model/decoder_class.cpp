// torch.classes.libvar_bench.Decoder: libvar's decoder on tensors of the Python process that has
// its peers, so that all of them compute with the same weights in the same memory.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decoder/decoder.h"
#include "generate/conversation.h"
#include "generate/decode_step.h"
#include "model/tensors.h"
#include "read_all.h"

namespace libvar::bench {
namespace {

DecoderConfig decoder_config(const Numbers& numbers) {
  const auto integer = [&](const char* key) { return static_cast<std::int64_t>(numbers.at(key)); };
  DecoderConfig config;
  config.hidden_size = integer("hidden_size");
  config.intermediate_size = integer("intermediate_size");
  config.num_layers = integer("num_layers");
  config.num_heads = integer("num_heads");
  config.num_kv_heads = integer("num_kv_heads");
  config.head_dim = integer("head_dim");
  config.vocab_size = integer("vocab_size");
  config.max_positions = integer("max_positions");
  config.rms_norm_eps = numbers.at("rms_norm_eps");
  config.rope_theta = numbers.at("rope_theta");
  config.qkv_bias = integer("qkv_bias") != 0;
  return config;
}

class BenchDecoder : public torch::CustomClassHolder {
 public:
  BenchDecoder(const Numbers& config, const Tensors& tensors,
               const std::vector<std::int64_t>& sink_dims)
      : decoder_(decoder_config(config), sink_dims,
                 WeightReader(tensor_map(tensors), target_of(tensors.at("lm_head.weight")))) {}

  /// Runs a prompt of one image in a new conversation.
  /// @param features    [visual tokens, D]: the rows [begin, begin + visual tokens) of the prompt
  /// @param with_var    change every layer, with the paper's values
  /// @return            [V] logits of the next token
  at::Tensor prefill(const std::vector<std::int64_t>& ids, std::int64_t begin,
                     const at::Tensor& features, bool with_var, std::int64_t new_tokens) {
    const c10::InferenceMode inference;
    Sequence prompt;
    prompt.ids = ids;
    prompt.visual_spans = {{begin, begin + features.size(0)}};
    prompt.visual_sizes = {VisualSize{features.size(0)}};
    if (!conversation_) conversation_.emplace(decoder_, /*prefill_chunk=*/0);
    conversation_->clear();
    copies_.reset();
    make_steps(1);
    return conversation_->prefill(prompt, {features}, settings(with_var), new_tokens).clone();
  }

  /// Several sequences that begin with the prompt that `other` has run: decode() feeds all of them.
  void copy_prefill_of(const c10::intrusive_ptr<BenchDecoder>& other, std::int64_t sequences,
                       std::int64_t new_tokens) {
    const c10::InferenceMode inference;
    const KvCache& prompt = other->conversation_->cache();
    copies_.emplace(decoder_.config(), decoder_.target(), sequences);
    copies_->reserve(prompt.length() + new_tokens);
    for (std::int64_t i = 0; i < sequences; ++i)
      copies_->sequences(i, 1, 0).copy_from(prompt, prompt.length());
    make_steps(sequences);
  }

  /// Feeds a token at a place behind a prompt that was run, and those that are chosen after it.
  /// @return  the chosen tokens of the first sequence
  std::vector<std::int64_t> decode(std::int64_t token, std::int64_t place, std::int64_t steps,
                                   bool with_var, bool graph) {
    const c10::InferenceMode inference;
    DecodeStep& step = graph ? *captured_ : *direct_;
    step.begin(std::vector<StepSequence>(static_cast<std::size_t>(sequences_),
                                         {token, place, place, 0, settings(with_var), {}}),
               copies_ ? *copies_ : conversation_->cache());
    std::vector<std::int64_t> tokens;
    for (std::int64_t i = 0; i < steps; ++i) tokens.push_back(step.run().front());
    logits_ = step.logits().clone();
    selected_ = step.take_selected_rows().sum().item<std::int64_t>();
    step.end();
    return tokens;
  }

  /// [sequences, V] of the last step of decode().
  at::Tensor logits() const { return logits_; }

  /// (head, row) pairs that VAR changed in decode().
  std::int64_t selected() const { return selected_; }

 private:
  static VarParams settings(bool with_var) {
    VarParams var;
    var.enabled = with_var;
    var.first_layer = 0;
    var.include_last_layer = true;
    return var;
  }

  void make_steps(std::int64_t sequences) {
    if (captured_ && sequences == sequences_) return;
    sequences_ = sequences;
    captured_.emplace(decoder_, sequences, decoder_.target().device.is_cuda());
    direct_.emplace(decoder_, sequences, false);
  }

  Decoder decoder_;
  std::int64_t sequences_ = 1;
  std::optional<DecodeStep> captured_, direct_;
  std::optional<Conversation> conversation_;
  std::optional<KvCache> copies_;  // of its prompt or another's; none: one sequence, where it ran
  at::Tensor logits_;
  std::int64_t selected_ = 0;
};

/// Reads tensors (whole 256 bytes of each) on the CPU, each thread a part of each; something that depends on
/// them.
std::int64_t read_tensors(const std::vector<at::Tensor>& tensors) {
  std::uint64_t result = 0;
  for (const at::Tensor& tensor : tensors) {
    const auto* bytes = static_cast<const char*>(tensor.const_data_ptr());
    const auto pieces = static_cast<std::int64_t>(tensor.nbytes() / 256);
    std::vector<std::uint64_t> found(static_cast<std::size_t>(at::get_num_threads()), 0);
    at::parallel_for(0, pieces, 1 << 10, [&](std::int64_t begin, std::int64_t end) {
      found[static_cast<std::size_t>(at::get_thread_num())] ^=
          read_all(bytes + begin * 256, static_cast<std::size_t>(end - begin) * 256);
    });
    for (const std::uint64_t one : found) result ^= one;
  }
  return static_cast<std::int64_t>(result);
}

}  // namespace
}  // namespace libvar::bench

TORCH_LIBRARY(libvar_bench, m) {
  using libvar::bench::BenchDecoder;
  m.class_<BenchDecoder>("Decoder")
      .def(torch::init<const libvar::bench::Numbers&, const libvar::bench::Tensors&,
                       const std::vector<std::int64_t>&>())
      .def("prefill", &BenchDecoder::prefill)
      .def("copy_prefill_of", &BenchDecoder::copy_prefill_of)
      .def("decode", &BenchDecoder::decode)
      .def("logits", &BenchDecoder::logits)
      .def("selected", &BenchDecoder::selected);
  m.def("read(Tensor[] tensors) -> int", &libvar::bench::read_tensors);
}
