#include "kernels/attention_peers.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <optional>
#include <tuple>

namespace libvar::bench {
namespace {

/// Leaves one backend of scaled_dot_product_attention allowed while it lives.
class OnlyBackend {
 public:
  explicit OnlyBackend(Sdpa backend) : active_(backend != Sdpa::kDefault) {
    if (active_)
      allow(backend == Sdpa::kFlash, backend == Sdpa::kCudnn, backend == Sdpa::kEfficient, false);
  }

  ~OnlyBackend() {
    if (active_) allow(true, true, true, true);
  }

  OnlyBackend(const OnlyBackend&) = delete;
  OnlyBackend& operator=(const OnlyBackend&) = delete;

 private:
  static void allow(bool flash, bool cudnn, bool efficient, bool math) {
    at::Context& context = at::globalContext();
    context.setSDPUseFlash(flash);
    context.setSDPUseCuDNN(cudnn);
    context.setSDPUseMemEfficient(efficient);
    context.setSDPUseMath(math);
  }

  bool active_;
};

std::optional<at::Tensor> bias_of(const AttentionSet& set) {
  return set.causal_bias.defined() ? std::optional(set.causal_bias) : std::nullopt;
}

/// [1, H, Q, Dh] -> [1, H_kv, H / H_kv * Q, Dh], without a copy.
at::Tensor packed_query(const AttentionSet& set) {
  const at::Tensor& q = set.in.query;
  return q.view({1, set.in.key.size(1), -1, q.size(3)});
}

/// [1, H_kv, K, Dh] -> [1, H, K, Dh], copied where heads share a cache.
at::Tensor repeated(const at::Tensor& cache, std::int64_t num_heads) {
  if (cache.size(1) == num_heads) return cache;
  const std::int64_t group = num_heads / cache.size(1);
  return cache.unsqueeze(2)
      .expand({1, cache.size(1), group, cache.size(2), cache.size(3)})
      .reshape({1, num_heads, cache.size(2), cache.size(3)});
}

at::Tensor probabilities(const AttentionSet& set, const at::Tensor& query, const at::Tensor& key) {
  at::Tensor scores = at::matmul(query, key.transpose(2, 3)).mul_(set.in.scale);
  if (set.causal_bias.defined()) {
    const std::int64_t rows = set.causal_bias.size(0);
    const at::Tensor by_group = scores.view({1, -1, rows, scores.size(3)});
    by_group.add_(set.causal_bias);
  }
  return at::softmax(scores, -1, at::kFloat).to(query.scalar_type());
}

struct ClassMasks {
  at::Tensor visual_sink, visual_non_sink, sink;  ///< [B, 1, 1, K] bool
};

ClassMasks class_masks(const at::Tensor& sink_scores, const at::Tensor& visual_mask, double tau) {
  const at::Tensor sink = (sink_scores >= tau).unsqueeze(1).unsqueeze(1);
  const at::Tensor visual = visual_mask.unsqueeze(1).unsqueeze(1);
  return {visual.logical_and(sink), visual.logical_and(sink.logical_not()), sink};
}

at::Tensor redistributed(const at::Tensor& probs, const ClassMasks& masks,
                         const RedistributionRule& rule) {
  const at::Tensor non_sink = (probs * masks.visual_non_sink).sum(-1, true);
  const at::Tensor visual_sink = (probs * masks.visual_sink).sum(-1, true);
  const at::Tensor sink = (probs * masks.sink).sum(-1, true);
  const at::Tensor visual = non_sink + visual_sink;
  const at::Tensor selected = masks.visual_sink.any()
                                  .logical_and(non_sink > 0)
                                  .logical_and(visual >= rule.min_visual_mass)
                                  .logical_and(non_sink >= visual * rule.rho);
  // No scalar operand of where(): it would be copied from the host, which a CUDA graph can't hold.
  const at::Tensor one = at::ones({}, probs.options());
  const at::Tensor gain =
      (rule.p * sink / non_sink).masked_fill(selected.logical_not(), 0.0).add_(1.0);
  const at::Tensor loss = selected.to(probs.scalar_type()).mul_(-rule.p).add_(1.0);
  return probs * at::where(masks.visual_non_sink, gain, at::where(masks.sink, loss, one));
}

/// Plain attention over some keys, and the logarithm of its denominator.
std::tuple<at::Tensor, at::Tensor> flash_state(const AttentionSet& set, const at::Tensor& key,
                                               const at::Tensor& value) {
  const at::Tensor query = packed_query(set);
  if (query.is_cuda()) {
    auto result =
        at::_scaled_dot_product_flash_attention(query, key, value, 0.0, false, false, set.in.scale);
    return {std::get<0>(result), std::get<1>(result).unsqueeze(-1)};
  }
  auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, false,
                                                                    {}, set.in.scale);
  return {out, lse.unsqueeze(-1)};
}

}  // namespace

at::Tensor sdpa(const AttentionSet& set, Sdpa backend) {
  const OnlyBackend only(backend);
  const AttentionInputs& in = set.in;
  return at::scaled_dot_product_attention(in.query, in.key, in.value, bias_of(set), 0.0, false,
                                          in.scale, in.query.size(1) != in.key.size(1));
}

at::Tensor sdpa_packed(const AttentionSet& set, Sdpa backend) {
  TORCH_CHECK(!set.causal_bias.defined(), "packed rows need one query row");
  const OnlyBackend only(backend);
  const AttentionInputs& in = set.in;
  return at::scaled_dot_product_attention(packed_query(set), in.key, in.value, {}, 0.0, false,
                                          in.scale)
      .reshape(in.query.sizes());
}

at::Tensor flash_causal(const AttentionSet& set) {
  const AttentionInputs& in = set.in;
  return std::get<0>(at::_scaled_dot_product_flash_attention(
      in.query, in.key, in.value, 0.0, set.causal_bias.defined(), false, in.scale));
}

at::Tensor eager(const AttentionSet& set) {
  const AttentionInputs& in = set.in;
  const std::int64_t heads = in.query.size(1);
  const at::Tensor probs = probabilities(set, in.query, repeated(in.key, heads));
  return at::matmul(probs, repeated(in.value, heads));
}

at::Tensor eager_packed(const AttentionSet& set) {
  const at::Tensor probs = probabilities(set, packed_query(set), set.in.key);
  return at::matmul(probs, set.in.value).view_as(set.in.query);
}

at::Tensor eager_redistributed(const AttentionSet& set, const RedistributionRule& rule) {
  const AttentionInputs& in = set.in;
  const std::int64_t heads = in.query.size(1);
  const at::Tensor probs = probabilities(set, in.query, repeated(in.key, heads));
  const at::Tensor moved = eager_redistribute(probs, in.sink_scores, in.visual_mask, rule);
  return at::matmul(moved, repeated(in.value, heads));
}

at::Tensor subtract(const AttentionSet& set, const RedistributionRule& rule) {
  const AttentionInputs& in = set.in;
  const std::int64_t image = set.visual_end - set.visual_begin;
  const auto [all_out, all_lse] = flash_state(set, in.key, in.value);
  const auto [image_out, image_lse] = flash_state(set, in.key.narrow(2, set.visual_begin, image),
                                                  in.value.narrow(2, set.visual_begin, image));
  const auto [vs_out, vs_lse] = flash_state(set, in.key.index_select(2, set.visual_sinks),
                                            in.value.index_select(2, set.visual_sinks));
  const auto [sink_out, sink_lse] =
      flash_state(set, in.key.index_select(2, set.sinks), in.value.index_select(2, set.sinks));
  const at::Tensor visual = at::exp(image_lse - all_lse);
  const at::Tensor visual_sink = at::exp(vs_lse - all_lse);
  const at::Tensor sink = at::exp(sink_lse - all_lse);
  const at::Tensor non_sink = visual - visual_sink;
  const at::Tensor selected = (visual >= rule.min_visual_mass)
                                  .logical_and(non_sink > 0)
                                  .logical_and(non_sink >= visual * rule.rho);
  const at::Tensor non_sink_out =
      (visual * image_out.to(at::kFloat) - visual_sink * vs_out.to(at::kFloat)) / non_sink;
  const at::Tensor moved =
      all_out.to(at::kFloat) + rule.p * sink * (non_sink_out - sink_out.to(at::kFloat));
  return at::where(selected, moved, all_out.to(at::kFloat))
      .to(in.query.scalar_type())
      .reshape(in.query.sizes());
}

at::Tensor eager_redistribute(const at::Tensor& probs, const at::Tensor& sink_scores,
                              const at::Tensor& visual_mask, const RedistributionRule& rule) {
  const ClassMasks masks = class_masks(sink_scores, visual_mask, rule.tau);
  return redistributed(probs.to(at::kFloat), masks, rule).to(probs.scalar_type());
}

at::Tensor eager_redistribute_low_precision(const at::Tensor& probs, const at::Tensor& sink_scores,
                                            const at::Tensor& visual_mask,
                                            const RedistributionRule& rule) {
  return redistributed(probs, class_masks(sink_scores, visual_mask, rule.tau), rule);
}

}  // namespace libvar::bench
