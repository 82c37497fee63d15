// Output shapes without data: the Meta kernels, which torch.compile and FakeTensor use.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"

namespace libvar {
namespace {

at::Tensor empty_contiguous(c10::SymIntArrayRef sizes, const at::Tensor& like,
                            at::ScalarType type) {
  return at::empty_symint(sizes, like.options().dtype(type));
}

at::Tensor sink_scores_meta(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  checks::check_sink_scores(hidden, sink_dims, eps);
  return empty_contiguous(hidden.sym_sizes().slice(0, hidden.dim() - 1), hidden, at::kFloat);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_outputs(const at::Tensor& hidden) {
  return {empty_contiguous(hidden.sym_sizes(), hidden, hidden.scalar_type()),
          empty_contiguous(hidden.sym_sizes().slice(0, hidden.dim() - 1), hidden, at::kFloat)};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores_meta(const at::Tensor& hidden,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& sink_dims,
                                                             double eps) {
  checks::check_rms_norm("rms_norm_sink_scores", "hidden", hidden, nullptr, weight, sink_dims, eps);
  return rms_norm_outputs(hidden);
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm_sink_scores_meta(at::Tensor& residual,
                                                                 const at::Tensor& delta,
                                                                 const at::Tensor& weight,
                                                                 const at::Tensor& sink_dims,
                                                                 double eps) {
  checks::check_rms_norm("add_rms_norm_sink_scores", "residual", residual, &delta, weight,
                         sink_dims, eps);
  return rms_norm_outputs(residual);
}

at::Tensor redistribute_meta(const at::Tensor& probs, const at::Tensor& sink_scores,
                             const at::Tensor& visual_mask,
                             const std::optional<at::Tensor>& row_mask, double tau, double rho,
                             double p, double min_visual_mass, double ratio_epsilon,
                             std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  checks::check_rule("redistribute",
                     {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute("redistribute", probs, sink_scores, visual_mask, row_mask);
  return empty_contiguous(probs.sym_sizes(), probs, probs.scalar_type());
}

void redistribute_in_place_meta(at::Tensor& probs, const at::Tensor& sink_scores,
                                const at::Tensor& visual_mask,
                                const std::optional<at::Tensor>& row_mask, double tau, double rho,
                                double p, double min_visual_mass, double ratio_epsilon,
                                std::int64_t sources, std::int64_t targets,
                                std::int64_t head_rule) {
  checks::check_rule("redistribute_",
                     {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute("redistribute_", probs, sink_scores, visual_mask, row_mask);
}

/// What a linear map of the input's rows gives.
at::Tensor linear_output(const at::Tensor& input, const at::Tensor& weight) {
  c10::SymDimVector sizes(input.sym_sizes().begin(), input.sym_sizes().end());
  sizes.back() = weight.sym_size(0);
  return empty_contiguous(sizes, input, input.scalar_type());
}

at::Tensor skinny_linear_meta(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias,
                              const std::optional<at::Tensor>& weight_scale) {
  checks::check_skinny_linear(input, weight, bias, weight_scale);
  return linear_output(input, weight);
}

at::Tensor skinny_swiglu_meta(const at::Tensor& input, const at::Tensor& gate_weight,
                              const at::Tensor& up_weight,
                              const std::optional<at::Tensor>& gate_bias,
                              const std::optional<at::Tensor>& up_bias,
                              const std::optional<at::Tensor>& gate_scale,
                              const std::optional<at::Tensor>& up_scale) {
  checks::check_skinny_swiglu(input, gate_weight, up_weight, gate_bias, up_bias, gate_scale,
                              up_scale);
  return linear_output(input, gate_weight);
}

at::Tensor silu_mul_meta(const at::Tensor& gate, const at::Tensor& up) {
  checks::check_silu_mul(gate, up);
  return empty_contiguous(gate.sym_sizes(), gate, gate.scalar_type());
}

at::Tensor greedy_tokens_meta(const at::Tensor& logits) {
  checks::check_greedy_tokens(logits);
  return empty_contiguous(logits.sym_sizes().slice(0, 1), logits, at::kLong);
}

at::Tensor rotate_and_cache_meta(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const at::Tensor& sink_scores,
                                 const at::Tensor& cos, const at::Tensor& sin,
                                 const at::Tensor& places, at::Tensor& key_cache,
                                 at::Tensor& value_cache, at::Tensor& sink_score_cache) {
  checks::check_rotate_and_cache(
      {query, key, value, sink_scores, cos, sin, places, key_cache, value_cache, sink_score_cache});
  return empty_contiguous(query.sym_sizes(), query, query.scalar_type());
}

at::Tensor attention_meta(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                          const std::optional<at::Tensor>& row_mask,
                          const std::optional<at::Tensor>& kv_lengths,
                          const std::optional<at::Tensor>& params,
                          const std::optional<at::Tensor>& selected,
                          const std::optional<at::Tensor>& class_mass, double scale, double tau,
                          double rho, double p, double min_visual_mass, double ratio_epsilon,
                          std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  checks::check_rule("attention",
                     {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_attention({query, key, value, sink_scores, visual_mask, row_mask, kv_lengths,
                           params, selected, class_mass},
                          scale);
  return empty_contiguous(query.sym_sizes(), query, query.scalar_type());
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, Meta, m) {
  m.impl("sink_scores", &libvar::sink_scores_meta);
  m.impl("rms_norm_sink_scores", &libvar::rms_norm_sink_scores_meta);
  m.impl("add_rms_norm_sink_scores", &libvar::add_rms_norm_sink_scores_meta);
  m.impl("skinny_linear", &libvar::skinny_linear_meta);
  m.impl("skinny_swiglu", &libvar::skinny_swiglu_meta);
  m.impl("rotate_and_cache", &libvar::rotate_and_cache_meta);
  m.impl("_silu_mul", &libvar::silu_mul_meta);
  m.impl("_greedy_tokens", &libvar::greedy_tokens_meta);
  m.impl("_redistribute", &libvar::redistribute_meta);
  m.impl("_redistribute_", &libvar::redistribute_in_place_meta);
  m.impl("_attention", &libvar::attention_meta);
}
