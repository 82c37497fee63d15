// The typed functions of ops.h and the public ops that are wrappers over the internal ones (see
// schema.cpp). Everything here goes through the dispatcher and names no device.

#include "libvar/ops.h"

#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <utility>

namespace libvar {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

using SinkScoresSignature = at::Tensor(const at::Tensor&, const at::Tensor&, double);
using RmsNormSignature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&,
                                                            const at::Tensor&, double);
using AddRmsNormSignature = std::tuple<at::Tensor, at::Tensor>(at::Tensor&, const at::Tensor&,
                                                               const at::Tensor&, const at::Tensor&,
                                                               double);
using SkinnyLinearSignature = at::Tensor(const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, const OptionalTensor&);
using SkinnySwigluSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&);
using SiluMulSignature = at::Tensor(const at::Tensor&, const at::Tensor&);
using GreedyTokensSignature = at::Tensor(const at::Tensor&);
using RotateAndCacheSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                           const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                           const at::Tensor&, at::Tensor&, at::Tensor&,
                                           at::Tensor&);
using PublicRedistributeSignature = at::Tensor(const at::Tensor&, const at::Tensor&,
                                               const at::Tensor&, const OptionalTensor&, double,
                                               double, double, double, double);
using RedistributeSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                         const OptionalTensor&, double, double, double, double,
                                         double, std::int64_t, std::int64_t, std::int64_t);
using RedistributeInPlaceSignature = void(at::Tensor&, const at::Tensor&, const at::Tensor&,
                                          const OptionalTensor&, double, double, double, double,
                                          double, std::int64_t, std::int64_t, std::int64_t);
using AttentionSignature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                      const at::Tensor&, const at::Tensor&, const OptionalTensor&,
                                      const OptionalTensor&, const OptionalTensor&,
                                      const OptionalTensor&, const OptionalTensor&, double, double,
                                      double, double, double, double, std::int64_t, std::int64_t,
                                      std::int64_t);

template <typename Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Looked up once: the look-up takes a lock and a hash, a call does not.
const c10::TypedOperatorHandle<RedistributeSignature>& redistribute_op() {
  static const auto op = find_op<RedistributeSignature>("libvar::_redistribute");
  return op;
}

const c10::TypedOperatorHandle<RedistributeInPlaceSignature>& redistribute_in_place_op() {
  static const auto op = find_op<RedistributeInPlaceSignature>("libvar::_redistribute_");
  return op;
}

const c10::TypedOperatorHandle<AttentionSignature>& attention_op() {
  static const auto op = find_op<AttentionSignature>("libvar::_attention");
  return op;
}

// Classes and head rule of the public ops, which take thresholds and shares only.
constexpr RedistributionRule kMethod;

at::Tensor public_redistribute(const at::Tensor& probs, const at::Tensor& sink_scores,
                               const at::Tensor& visual_mask, const OptionalTensor& row_mask,
                               double tau, double rho, double p, double min_visual_mass,
                               double ratio_epsilon) {
  return redistribute_op().call(probs, sink_scores, visual_mask, row_mask, tau, rho, p,
                                min_visual_mass, ratio_epsilon, kMethod.sources, kMethod.targets,
                                static_cast<std::int64_t>(kMethod.head_rule));
}

at::Tensor& public_redistribute_in_place(at::Tensor& probs, const at::Tensor& sink_scores,
                                         const at::Tensor& visual_mask,
                                         const OptionalTensor& row_mask, double tau, double rho,
                                         double p, double min_visual_mass, double ratio_epsilon) {
  redistribute_in_place_op().call(probs, sink_scores, visual_mask, row_mask, tau, rho, p,
                                  min_visual_mass, ratio_epsilon, kMethod.sources, kMethod.targets,
                                  static_cast<std::int64_t>(kMethod.head_rule));
  return probs;
}

at::Tensor public_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                            const OptionalTensor& row_mask, const OptionalTensor& kv_lengths,
                            double scale, double tau, double rho, double p, double min_visual_mass,
                            double ratio_epsilon) {
  return attention_op().call(query, key, value, sink_scores, visual_mask, row_mask, kv_lengths,
                             std::nullopt, std::nullopt, std::nullopt, scale, tau, rho, p,
                             min_visual_mass, ratio_epsilon, kMethod.sources, kMethod.targets,
                             static_cast<std::int64_t>(kMethod.head_rule));
}

// torch.compile replaces a mutation by its functional form by itself, except where the op returns
// the tensor that it changes. So redistribute_ says how.
at::Tensor& functionalize_redistribute_in_place(at::Tensor& probs, const at::Tensor& sink_scores,
                                                const at::Tensor& visual_mask,
                                                const OptionalTensor& row_mask, double tau,
                                                double rho, double p, double min_visual_mass,
                                                double ratio_epsilon) {
  namespace functional = at::functionalization::impl;
  const auto plain = [](const at::Tensor& tensor) {
    if (!functional::isFunctionalTensor(tensor)) return tensor;
    functional::sync(tensor);
    return functional::from_functional_tensor(tensor);
  };
  TORCH_CHECK_VALUE(functional::isFunctionalTensor(probs),
                    "redistribute_: expected probs to be traced like the other arguments, got a "
                    "tensor from outside "
                    "the traced function");
  static const auto op = find_op<PublicRedistributeSignature>("libvar::redistribute");
  const at::Tensor plain_probs = plain(probs);
  at::Tensor result;
  {
    at::AutoDispatchSkipFunctionalize guard;
    result = op.call(plain_probs, plain(sink_scores), plain(visual_mask),
                     row_mask.has_value() ? OptionalTensor(plain(*row_mask)) : std::nullopt, tau,
                     rho, p, min_visual_mass, ratio_epsilon);
  }
  functional::replace_(probs, result);
  functional::commit_update(probs);
  functional::sync(probs);
  return probs;
}

// The floats of a rule as the schema's doubles. An infinite tau stays infinite.
struct RuleDoubles {
  double tau, rho, p, min_visual_mass, ratio_epsilon;
  std::int64_t sources, targets, head_rule;

  explicit RuleDoubles(const RedistributionRule& rule)
      : tau(rule.tau),
        rho(rule.rho),
        p(rule.p),
        min_visual_mass(rule.min_visual_mass),
        ratio_epsilon(rule.ratio_epsilon),
        sources(rule.sources),
        targets(rule.targets),
        head_rule(static_cast<std::int64_t>(rule.head_rule)) {}
};

OptionalTensor defined_or_none(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

thread_local bool weights_are_ready = false;

}  // namespace

WeightsAreReady::WeightsAreReady() : before_(std::exchange(weights_are_ready, true)) {}

WeightsAreReady::~WeightsAreReady() {
  weights_are_ready = before_;
}

bool WeightsAreReady::on_this_thread() {
  return weights_are_ready;
}

// Whoever calls this uses a symbol of libvar_ops.so, so the linker keeps the library, and its
// static initialisers registered the ops when it was loaded. The look-up says so, or throws.
void ensure_ops_registered() {
  attention_op();
}

at::Tensor sink_scores(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  static const auto op = find_op<SinkScoresSignature>("libvar::sink_scores");
  return op.call(hidden, sink_dims, eps);
}

std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores(const at::Tensor& hidden,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& sink_dims, double eps) {
  static const auto op = find_op<RmsNormSignature>("libvar::rms_norm_sink_scores");
  return op.call(hidden, weight, sink_dims, eps);
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm_sink_scores(at::Tensor& residual,
                                                            const at::Tensor& delta,
                                                            const at::Tensor& weight,
                                                            const at::Tensor& sink_dims,
                                                            double eps) {
  static const auto op = find_op<AddRmsNormSignature>("libvar::add_rms_norm_sink_scores");
  return op.call(residual, delta, weight, sink_dims, eps);
}

at::Tensor skinny_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& weight_scale) {
  static const auto op = find_op<SkinnyLinearSignature>("libvar::skinny_linear");
  return op.call(input, weight, bias, weight_scale);
}

at::Tensor skinny_swiglu(const at::Tensor& input, const at::Tensor& gate_weight,
                         const at::Tensor& up_weight, const OptionalTensor& gate_bias,
                         const OptionalTensor& up_bias, const OptionalTensor& gate_scale,
                         const OptionalTensor& up_scale) {
  static const auto op = find_op<SkinnySwigluSignature>("libvar::skinny_swiglu");
  return op.call(input, gate_weight, up_weight, gate_bias, up_bias, gate_scale, up_scale);
}

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  static const auto op = find_op<SiluMulSignature>("libvar::_silu_mul");
  return op.call(gate, up);
}

at::Tensor greedy_tokens(const at::Tensor& logits) {
  static const auto op = find_op<GreedyTokensSignature>("libvar::_greedy_tokens");
  return op.call(logits);
}

at::Tensor rotate_and_cache(const RotaryInputs& inputs, const at::Tensor& places,
                            at::Tensor& key_cache, at::Tensor& value_cache,
                            at::Tensor& sink_score_cache) {
  static const auto op = find_op<RotateAndCacheSignature>("libvar::rotate_and_cache");
  return op.call(inputs.query, inputs.key, inputs.value, inputs.sink_scores, inputs.cos, inputs.sin,
                 places, key_cache, value_cache, sink_score_cache);
}

at::Tensor redistribute(const at::Tensor& probs, const at::Tensor& sink_scores,
                        const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask,
                        const RedistributionRule& rule) {
  const RuleDoubles r(rule);
  return redistribute_op().call(probs, sink_scores, visual_mask, row_mask, r.tau, r.rho, r.p,
                                r.min_visual_mass, r.ratio_epsilon, r.sources, r.targets,
                                r.head_rule);
}

at::Tensor& redistribute_(at::Tensor& probs, const at::Tensor& sink_scores,
                          const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask,
                          const RedistributionRule& rule) {
  const RuleDoubles r(rule);
  redistribute_in_place_op().call(probs, sink_scores, visual_mask, row_mask, r.tau, r.rho, r.p,
                                  r.min_visual_mass, r.ratio_epsilon, r.sources, r.targets,
                                  r.head_rule);
  return probs;
}

at::Tensor attention(const AttentionInputs& inputs, const RedistributionRule& rule,
                     const std::optional<at::Tensor>& params, AttentionTrace* trace) {
  const RuleDoubles r(rule);
  const OptionalTensor selected =
      trace == nullptr ? std::nullopt : defined_or_none(trace->selected);
  const OptionalTensor class_mass =
      trace == nullptr ? std::nullopt : defined_or_none(trace->class_mass);
  return attention_op().call(inputs.query, inputs.key, inputs.value, inputs.sink_scores,
                             inputs.visual_mask, inputs.row_mask, inputs.kv_lengths, params,
                             selected, class_mass, inputs.scale, r.tau, r.rho, r.p,
                             r.min_visual_mass, r.ratio_epsilon, r.sources, r.targets, r.head_rule);
}

}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("redistribute", &libvar::public_redistribute);
  m.impl("redistribute_", &libvar::public_redistribute_in_place);
  m.impl("attention", &libvar::public_attention);
}

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("redistribute", &libvar::public_redistribute);
  m.impl("redistribute_", &libvar::public_redistribute_in_place);
  m.impl("attention", &libvar::public_attention);
}

TORCH_LIBRARY_IMPL(libvar, Meta, m) {
  m.impl("redistribute", &libvar::public_redistribute);
  m.impl("redistribute_", &libvar::public_redistribute_in_place);
  m.impl("attention", &libvar::public_attention);
}

TORCH_LIBRARY_IMPL(libvar, Functionalize, m) {
  m.impl("redistribute_", &libvar::functionalize_redistribute_in_place);
}
