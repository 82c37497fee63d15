// The only TORCH_LIBRARY block: every op of libvar on one screen. Inference only: a backward pass
// through an op raises.
//
// The ops without a leading underscore are the public interface. `redistribute`, `redistribute_`
// and `attention` are thin wrappers (ops.cpp) over the ops with a leading underscore, which take
// all that the typed functions of ops.h take: general classes, head rule, parameters per sequence,
// traces. `_silu_mul` and `_greedy_tokens` are silu_mul and greedy_tokens of ops.h, which a decoder
// alone needs. A device implements each of
//     sink_scores  rms_norm_sink_scores  add_rms_norm_sink_scores  skinny_linear  skinny_swiglu
//     rotate_and_cache  _silu_mul  _greedy_tokens  _redistribute  _redistribute_  _attention
// once, and so does meta.cpp. `sources` and `targets` are ClassSets, `head_rule` is a HeadRule, as
// integers.

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

TORCH_LIBRARY(libvar, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("sink_scores(Tensor hidden, Tensor sink_dims, float eps=1e-6) -> Tensor", tags);
  m.def(
      "rms_norm_sink_scores(Tensor hidden, Tensor weight, Tensor sink_dims, float eps=1e-6) "
      "-> (Tensor, Tensor)",
      tags);
  m.def(
      "add_rms_norm_sink_scores(Tensor(a!) residual, Tensor delta, Tensor weight, "
      "Tensor sink_dims, float eps=1e-6) -> (Tensor, Tensor)",
      tags);
  m.def(
      "skinny_linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? weight_scale=None) "
      "-> Tensor",
      tags);
  m.def(
      "skinny_swiglu(Tensor input, Tensor gate_weight, Tensor up_weight, Tensor? gate_bias=None, "
      "Tensor? up_bias=None, Tensor? gate_scale=None, Tensor? up_scale=None) -> Tensor",
      tags);
  m.def(
      "rotate_and_cache(Tensor query, Tensor key, Tensor value, Tensor sink_scores, Tensor cos, "
      "Tensor sin, Tensor places, Tensor(a!) key_cache, Tensor(b!) value_cache, "
      "Tensor(c!) sink_score_cache) -> Tensor",
      tags);
  m.def(
      "redistribute(Tensor probs, Tensor sink_scores, Tensor visual_mask, "
      "Tensor? row_mask=None, *, float tau=20., float rho=0.8, float p=0.6, "
      "float min_visual_mass=0.2, float ratio_epsilon=0.) -> Tensor",
      tags);
  m.def(
      "redistribute_(Tensor(a!) probs, Tensor sink_scores, Tensor visual_mask, "
      "Tensor? row_mask=None, *, float tau=20., float rho=0.8, float p=0.6, "
      "float min_visual_mass=0.2, float ratio_epsilon=0.) -> Tensor(a!)",
      tags);
  m.def(
      "attention(Tensor query, Tensor key, Tensor value, Tensor sink_scores, Tensor visual_mask, "
      "Tensor? row_mask=None, Tensor? kv_lengths=None, *, float scale, float tau=20., "
      "float rho=0.8, float p=0.6, float min_visual_mass=0.2, float ratio_epsilon=0.) -> Tensor",
      tags);

  m.def("_silu_mul(Tensor gate, Tensor up) -> Tensor", tags);
  m.def("_greedy_tokens(Tensor logits) -> Tensor", tags);
  m.def(
      "_redistribute(Tensor probs, Tensor sink_scores, Tensor visual_mask, Tensor? row_mask, *, "
      "float tau, float rho, float p, float min_visual_mass, float ratio_epsilon, "
      "int sources, int targets, int head_rule) -> Tensor",
      tags);
  m.def(
      "_redistribute_(Tensor(a!) probs, Tensor sink_scores, Tensor visual_mask, "
      "Tensor? row_mask, *, float tau, float rho, float p, float min_visual_mass, "
      "float ratio_epsilon, int sources, int targets, int head_rule) -> ()",
      tags);
  m.def(
      "_attention(Tensor query, Tensor key, Tensor value, Tensor sink_scores, Tensor visual_mask, "
      "Tensor? row_mask, Tensor? kv_lengths, Tensor? params, Tensor(a!)? selected, "
      "Tensor(b!)? class_mass, *, float scale, float tau, float rho, float p, "
      "float min_visual_mass, float ratio_epsilon, int sources, int targets, int head_rule) "
      "-> Tensor",
      tags);
}

TORCH_LIBRARY_IMPL(libvar, Autograd, m) {
  for (const char* op :
       {"sink_scores", "rms_norm_sink_scores", "add_rms_norm_sink_scores", "skinny_linear",
        "skinny_swiglu", "rotate_and_cache", "redistribute", "redistribute_", "attention",
        "_silu_mul", "_greedy_tokens", "_redistribute", "_redistribute_", "_attention"}) {
    m.impl(op, torch::autograd::autogradNotImplementedFallback());
  }
}
