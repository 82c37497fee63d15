#include "checks.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <cmath>

#include "libvar/ops.h"

namespace libvar::checks {
namespace {

void check_dtype(const char* op, const char* name, const at::Tensor& tensor,
                 at::ScalarType expected) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == expected, op, ": expected ", name, " of dtype ",
                   expected, ", got ", tensor.scalar_type());
}

void check_floating(const char* op, const char* name, const at::Tensor& tensor) {
  const at::ScalarType type = tensor.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kHalf || type == at::kBFloat16, op,
                   ": expected ", name, " of dtype Float, Half or BFloat16, got ", type);
}

void check_device(const char* op, const char* name, const at::Tensor& tensor,
                  const at::Tensor& reference) {
  TORCH_CHECK_VALUE(tensor.device() == reference.device(), op, ": expected ", name, " on ",
                    reference.device(), ", got ", tensor.device());
}

void check_rank(const char* op, const char* name, const at::Tensor& tensor, std::int64_t rank,
                const char* sizes) {
  TORCH_CHECK_VALUE(tensor.dim() == rank, op, ": expected ", name, " of shape ", sizes, ", got ",
                    tensor.sym_sizes());
}

void check_shape(const char* op, const char* name, const at::Tensor& tensor,
                 c10::SymIntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sym_sizes() == expected, op, ": expected ", name, " of shape ", expected,
                    ", got ", tensor.sym_sizes());
}

void check_last_dim_contiguous(const char* op, const char* name, const at::Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.sym_size(-1) <= 1 || tensor.sym_stride(-1) == 1, op, ": expected ", name,
                    " with a contiguous last dimension, got strides ", tensor.sym_strides());
}

/// A tensor [..., D] that has dtype, shape and device of another.
void check_like(const char* op, const char* name, const at::Tensor& tensor,
                const at::Tensor& reference) {
  check_dtype(op, name, tensor, reference.scalar_type());
  check_shape(op, name, tensor, reference.sym_sizes());
  check_last_dim_contiguous(op, name, tensor);
  check_device(op, name, tensor, reference);
}

void check_range(const char* op, const char* name, double value, double low, double high) {
  TORCH_CHECK_VALUE(value >= low && value <= high, op, ": expected ", name, " in [", low, ", ",
                    high, "], got ", value);
}

void check_class_set(const char* op, const char* name, std::int64_t set) {
  TORCH_CHECK_VALUE(set >= 0 && set < (1 << kNumTokenClasses), op, ": expected ", name,
                    " to be a set of the ", kNumTokenClasses, " token classes, got ", set);
}

void check_hidden(const char* op, const char* name, const at::Tensor& hidden,
                  const at::Tensor& sink_dims, double eps) {
  check_floating(op, name, hidden);
  TORCH_CHECK_VALUE(hidden.dim() >= 1 && hidden.sym_size(-1) >= 1, op, ": expected ", name,
                    " of shape [..., D] with D > 0, got ", hidden.sym_sizes());
  check_last_dim_contiguous(op, name, hidden);
  check_dtype(op, "sink_dims", sink_dims, at::kLong);
  check_rank(op, "sink_dims", sink_dims, 1, "[S]");
  check_device(op, "sink_dims", sink_dims, hidden);
  TORCH_CHECK_VALUE(eps > 0.0 && std::isfinite(eps), op, ": expected eps > 0, got ", eps);
}

void check_num_sink_dims(const char* op, const at::Tensor& sink_dims, int least) {
  TORCH_CHECK_VALUE(sink_dims.sym_size(0) >= least && sink_dims.sym_size(0) <= kMaxSinkDims, op,
                    ": expected ", least, " to ", kMaxSinkDims, " sink dimensions, got ",
                    sink_dims.sym_size(0));
}

void check_skinny_input(const char* op, const at::Tensor& input) {
  check_floating(op, "input", input);
  TORCH_CHECK_VALUE(input.dim() >= 1 && input.sym_size(-1) >= 1, op,
                    ": expected input of shape [..., K] with K > 0, got ", input.sym_sizes());
  const c10::SymInt num_rows = input.sym_numel() / input.sym_size(-1);
  TORCH_CHECK_VALUE(num_rows <= kMaxSkinnyRows, op, ": expected at most ", kMaxSkinnyRows,
                    " rows of input, got ", num_rows);
}

/// The names of a linear map's tensors in messages.
struct LinearNames {
  const char* weight;
  const char* bias;
  const char* scale;
};

void check_linear_map(const char* op, const LinearNames& names, const at::Tensor& input,
                      const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                      const std::optional<at::Tensor>& scale) {
  check_dtype(op, names.weight, weight, scale.has_value() ? at::kChar : input.scalar_type());
  check_rank(op, names.weight, weight, 2, "[N, K]");
  check_shape(op, names.weight, weight, {weight.sym_size(0), input.sym_size(-1)});
  check_last_dim_contiguous(op, names.weight, weight);
  check_device(op, names.weight, weight, input);
  if (bias.has_value()) {
    check_dtype(op, names.bias, *bias, input.scalar_type());
    check_shape(op, names.bias, *bias, {weight.sym_size(0)});
    check_device(op, names.bias, *bias, input);
  }
  if (scale.has_value()) {
    check_dtype(op, names.scale, *scale, at::kFloat);
    check_shape(op, names.scale, *scale, {weight.sym_size(0)});
    check_device(op, names.scale, *scale, input);
  }
}

}  // namespace

RedistributionRule check_rule(const char* op, const RuleArguments& arguments) {
  TORCH_CHECK_VALUE(arguments.tau >= 0.0, op, ": expected tau >= 0, got ", arguments.tau);
  check_range(op, "rho", arguments.rho, 0.0, 1.0);
  check_range(op, "p", arguments.p, 0.0, 1.0);
  check_range(op, "min_visual_mass", arguments.min_visual_mass, 0.0, 1.0);
  TORCH_CHECK_VALUE(arguments.ratio_epsilon >= 0.0 && std::isfinite(arguments.ratio_epsilon), op,
                    ": expected a finite ratio_epsilon >= 0, got ", arguments.ratio_epsilon);
  check_class_set(op, "sources", arguments.sources);
  check_class_set(op, "targets", arguments.targets);
  TORCH_CHECK_VALUE((arguments.sources & arguments.targets) == 0, op,
                    ": expected no token class in both sources and targets, got sources ",
                    arguments.sources, " and targets ", arguments.targets);
  TORCH_CHECK_VALUE(
      arguments.head_rule >= 0 && arguments.head_rule <= static_cast<int>(HeadRule::kNone), op,
      ": expected head_rule 0 (ratio), 1 (all) or 2 (none), got ", arguments.head_rule);
  RedistributionRule rule;
  rule.tau = static_cast<float>(arguments.tau);
  rule.rho = static_cast<float>(arguments.rho);
  rule.p = static_cast<float>(arguments.p);
  rule.min_visual_mass = static_cast<float>(arguments.min_visual_mass);
  rule.ratio_epsilon = static_cast<float>(arguments.ratio_epsilon);
  rule.sources = static_cast<ClassSet>(arguments.sources);
  rule.targets = static_cast<ClassSet>(arguments.targets);
  rule.head_rule = static_cast<HeadRule>(arguments.head_rule);
  return rule;
}

void check_sink_scores(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  check_hidden("sink_scores", "hidden", hidden, sink_dims, eps);
  check_num_sink_dims("sink_scores", sink_dims, 1);
}

void check_rms_norm(const char* op, const char* hidden_name, const at::Tensor& hidden,
                    const at::Tensor* delta, const at::Tensor& weight, const at::Tensor& sink_dims,
                    double eps) {
  check_hidden(op, hidden_name, hidden, sink_dims, eps);
  check_num_sink_dims(op, sink_dims, 0);
  check_dtype(op, "weight", weight, hidden.scalar_type());
  check_shape(op, "weight", weight, {hidden.sym_size(-1)});
  check_last_dim_contiguous(op, "weight", weight);
  check_device(op, "weight", weight, hidden);
  if (delta != nullptr) check_like(op, "delta", *delta, hidden);
}

void check_redistribute(const char* op, const at::Tensor& probs, const at::Tensor& sink_scores,
                        const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask) {
  check_floating(op, "probs", probs);
  check_rank(op, "probs", probs, 4, "[B, H, Q, K]");
  check_last_dim_contiguous(op, "probs", probs);
  const c10::SymInt batch = probs.sym_size(0);
  const c10::SymInt num_keys = probs.sym_size(3);
  check_dtype(op, "sink_scores", sink_scores, at::kFloat);
  check_shape(op, "sink_scores", sink_scores, {batch, num_keys});
  check_device(op, "sink_scores", sink_scores, probs);
  check_dtype(op, "visual_mask", visual_mask, at::kBool);
  check_shape(op, "visual_mask", visual_mask, {batch, num_keys});
  check_device(op, "visual_mask", visual_mask, probs);
  if (row_mask.has_value()) {
    check_dtype(op, "row_mask", *row_mask, at::kBool);
    check_shape(op, "row_mask", *row_mask, {batch, probs.sym_size(2)});
    check_device(op, "row_mask", *row_mask, probs);
  }
}

void check_skinny_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& weight_scale) {
  const char* op = "skinny_linear";
  check_skinny_input(op, input);
  check_linear_map(op, {"weight", "bias", "weight_scale"}, input, weight, bias, weight_scale);
}

void check_skinny_swiglu(const at::Tensor& input, const at::Tensor& gate_weight,
                         const at::Tensor& up_weight, const std::optional<at::Tensor>& gate_bias,
                         const std::optional<at::Tensor>& up_bias,
                         const std::optional<at::Tensor>& gate_scale,
                         const std::optional<at::Tensor>& up_scale) {
  const char* op = "skinny_swiglu";
  check_skinny_input(op, input);
  TORCH_CHECK_VALUE(gate_scale.has_value() == up_scale.has_value(), op,
                    ": expected scales for both weights or for none, got ",
                    gate_scale.has_value() ? "gate_scale" : "up_scale", " alone");
  check_linear_map(op, {"gate_weight", "gate_bias", "gate_scale"}, input, gate_weight, gate_bias,
                   gate_scale);
  check_linear_map(op, {"up_weight", "up_bias", "up_scale"}, input, up_weight, up_bias, up_scale);
  check_shape(op, "up_weight", up_weight, gate_weight.sym_sizes());
}

void check_silu_mul(const at::Tensor& gate, const at::Tensor& up) {
  const char* op = "silu_mul";
  check_floating(op, "gate", gate);
  TORCH_CHECK_VALUE(gate.dim() >= 1 && gate.sym_size(-1) >= 1, op,
                    ": expected gate of shape [..., F] with F > 0, got ", gate.sym_sizes());
  check_last_dim_contiguous(op, "gate", gate);
  check_like(op, "up", up, gate);
}

void check_greedy_tokens(const at::Tensor& logits) {
  const char* op = "greedy_tokens";
  check_floating(op, "logits", logits);
  check_rank(op, "logits", logits, 2, "[B, V]");
  TORCH_CHECK_VALUE(logits.sym_size(1) >= 1, op,
                    ": expected logits of shape [B, V] with V > 0, got ", logits.sym_sizes());
  check_last_dim_contiguous(op, "logits", logits);
}

void check_rotate_and_cache(const RotaryTensors& tensors) {
  const char* op = "rotate_and_cache";
  const at::Tensor& query = tensors.query;
  check_floating(op, "query", query);
  check_rank(op, "query", query, 4, "[B, H, Q, Dh]");
  check_rank(op, "key", tensors.key, 4, "[B, H_kv, Q, Dh]");
  check_rank(op, "key_cache", tensors.key_cache, 4, "[B, H_kv, K, Dh]");
  check_rank(op, "cos", tensors.cos, 3, "[B or 1, Q, Dh]");
  const c10::SymInt batch = query.sym_size(0), num_rows = query.sym_size(2),
                    head_dim = query.sym_size(3), num_kv_heads = tensors.key.sym_size(1),
                    capacity = tensors.key_cache.sym_size(2), angles = tensors.cos.sym_size(0);
  TORCH_CHECK_VALUE(head_dim >= 2 && head_dim % 2 == 0, op,
                    ": expected query of shape [B, H, Q, Dh] with an even Dh > 0, got ",
                    query.sym_sizes());
  TORCH_CHECK_VALUE(num_kv_heads >= 1, op, ": expected at least one key head, got ", num_kv_heads);
  TORCH_CHECK_VALUE(angles == 1 || angles == batch, op, ": expected cos of 1 or ", batch,
                    " sequences, got ", angles);
  const auto check_rows = [&](const char* name, const at::Tensor& tensor,
                              c10::SymIntArrayRef shape) {
    check_dtype(op, name, tensor, query.scalar_type());
    check_shape(op, name, tensor, shape);
    check_last_dim_contiguous(op, name, tensor);
    check_device(op, name, tensor, query);
  };
  check_last_dim_contiguous(op, "query", query);
  check_rows("key", tensors.key, {batch, num_kv_heads, num_rows, head_dim});
  check_rows("value", tensors.value, {batch, num_kv_heads, num_rows, head_dim});
  check_rows("cos", tensors.cos, {angles, num_rows, head_dim});
  check_rows("sin", tensors.sin, {angles, num_rows, head_dim});
  check_rows("key_cache", tensors.key_cache, {batch, num_kv_heads, capacity, head_dim});
  check_rows("value_cache", tensors.value_cache, {batch, num_kv_heads, capacity, head_dim});
  const auto check_small = [&](const char* name, const at::Tensor& tensor, at::ScalarType type,
                               c10::SymIntArrayRef shape) {
    check_dtype(op, name, tensor, type);
    check_shape(op, name, tensor, shape);
    check_device(op, name, tensor, query);
  };
  check_small("sink_scores", tensors.sink_scores, at::kFloat, {batch, num_rows});
  check_small("sink_score_cache", tensors.sink_score_cache, at::kFloat, {batch, capacity});
  check_small("places", tensors.places, at::kLong, {batch});
}

void check_attention(const AttentionTensors& tensors, double scale) {
  const char* op = "attention";
  const at::Tensor& query = tensors.query;
  check_floating(op, "query", query);
  check_rank(op, "query", query, 4, "[B, H, Q, Dh]");
  check_last_dim_contiguous(op, "query", query);
  check_rank(op, "key", tensors.key, 4, "[B, H_kv, K, Dh]");
  const c10::SymInt batch = query.sym_size(0);
  const c10::SymInt num_heads = query.sym_size(1);
  const c10::SymInt num_rows = query.sym_size(2);
  const c10::SymInt head_dim = query.sym_size(3);
  const c10::SymInt num_kv_heads = tensors.key.sym_size(1);
  const c10::SymInt num_keys = tensors.key.sym_size(2);
  TORCH_CHECK_VALUE(head_dim >= 1, op, ": expected query of shape [B, H, Q, Dh] with Dh > 0, got ",
                    query.sym_sizes());
  TORCH_CHECK_VALUE(
      num_kv_heads >= 1 && num_heads % num_kv_heads == 0, op,
      ": expected a number of query heads that is a multiple of the number of key heads, got ",
      num_heads, " and ", num_kv_heads);
  TORCH_CHECK_VALUE(std::isfinite(scale), op, ": expected a finite scale, got ", scale);
  const std::pair<const char*, const at::Tensor&> keys_and_values[] = {{"key", tensors.key},
                                                                       {"value", tensors.value}};
  for (const auto& [name, tensor] : keys_and_values) {
    check_dtype(op, name, tensor, query.scalar_type());
    check_shape(op, name, tensor, {batch, num_kv_heads, num_keys, head_dim});
    check_last_dim_contiguous(op, name, tensor);
    check_device(op, name, tensor, query);
  }
  const auto check_small = [&](const char* name, const at::Tensor& tensor, at::ScalarType type,
                               c10::SymIntArrayRef shape) {
    check_dtype(op, name, tensor, type);
    check_shape(op, name, tensor, shape);
    check_device(op, name, tensor, query);
  };
  check_small("sink_scores", tensors.sink_scores, at::kFloat, {batch, num_keys});
  check_small("visual_mask", tensors.visual_mask, at::kBool, {batch, num_keys});
  if (tensors.row_mask.has_value())
    check_small("row_mask", *tensors.row_mask, at::kBool, {batch, num_rows});
  if (tensors.kv_lengths.has_value())
    check_small("kv_lengths", *tensors.kv_lengths, at::kInt, {batch});
  if (tensors.params.has_value())
    check_small("params", *tensors.params, at::kFloat, {batch, kNumSequenceParams});
  if (tensors.selected.has_value()) {
    check_small("selected", *tensors.selected, at::kBool, {batch, num_heads, num_rows});
    TORCH_CHECK_VALUE(tensors.selected->is_contiguous(), op,
                      ": expected a contiguous selected, got strides ",
                      tensors.selected->sym_strides());
  }
  if (tensors.class_mass.has_value()) {
    check_small("class_mass", *tensors.class_mass, at::kFloat,
                {batch, num_heads, num_rows, kNumTokenClasses});
    TORCH_CHECK_VALUE(tensors.class_mass->is_contiguous(), op,
                      ": expected a contiguous class_mass, got strides ",
                      tensors.class_mass->sym_strides());
  }
}

void check_sink_dim_values(const char* op, const at::Tensor& sink_dims, std::int64_t hidden_size) {
  const auto dims = sink_dims.accessor<std::int64_t, 1>();
  for (std::int64_t i = 0; i < dims.size(0); ++i) {
    TORCH_CHECK_VALUE(dims[i] >= 0 && dims[i] < hidden_size, op, ": expected sink_dims[", i,
                      "] in [0, ", hidden_size, "), got ", dims[i]);
  }
}

void check_kv_length_values(const at::Tensor& kv_lengths, std::int64_t num_keys) {
  const auto lengths = kv_lengths.accessor<std::int32_t, 1>();
  for (std::int64_t b = 0; b < lengths.size(0); ++b) {
    TORCH_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= num_keys, "attention: expected kv_lengths[",
                      b, "] in [0, ", num_keys, "], got ", lengths[b]);
  }
}

void check_place_values(const at::Tensor& places, std::int64_t num_rows, std::int64_t capacity) {
  const auto values = places.accessor<std::int64_t, 1>();
  for (std::int64_t b = 0; b < values.size(0); ++b) {
    TORCH_CHECK_VALUE(values[b] >= 0 && values[b] <= capacity - num_rows,
                      "rotate_and_cache: expected places[", b, "] in [0, ", capacity - num_rows,
                      "], got ", values[b]);
  }
}

void check_sequence_param_values(const at::Tensor& params) {
  static constexpr const char* kNames[kNumSequenceParams] = {"tau", "rho", "p", "min_visual_mass"};
  const auto values = params.accessor<float, 2>();
  for (std::int64_t b = 0; b < values.size(0); ++b) {
    for (int i = 0; i < kNumSequenceParams; ++i) {
      const float value = values[b][i];
      TORCH_CHECK_VALUE(value >= 0.0f && (i == 0 || value <= 1.0f), "attention: expected params[",
                        b, "][", i, "] (", kNames[i], i == 0 ? ") >= 0" : ") in [0, 1]", ", got ",
                        value);
    }
  }
}

}  // namespace libvar::checks
