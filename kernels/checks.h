#pragma once

// Argument checks that every device and Meta share, so that all of them refuse the same calls in
// the same words:
//     <op>: expected <what>, got <what>
// Sizes are read as SymInts: the same checks run while torch.compile traces with symbolic shapes.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "libvar/redistribution_rule.h"

namespace libvar::checks {

inline constexpr int kMaxSinkDims = 8;
inline constexpr int kNumSequenceParams = 4;  ///< columns of `params`: tau, rho, p, min_visual_mass

/// Thresholds and shares as the op's schema holds them.
struct RuleArguments {
  double tau;
  double rho;
  double p;
  double min_visual_mass;
  double ratio_epsilon;
  std::int64_t sources;
  std::int64_t targets;
  std::int64_t head_rule;
};

/// Checks the ranges that RedistributionRule states and returns the rule.
/// @throws c10::ValueError
RedistributionRule check_rule(const char* op, const RuleArguments& arguments);

/// sink_scores: hidden [..., D], sink_dims [S] with 1 <= S <= 8, eps > 0.
void check_sink_scores(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps);

/// rms_norm_sink_scores and, with `delta`, add_rms_norm_sink_scores: as check_sink_scores with 0 <=
/// S <= 8.
void check_rms_norm(const char* op, const char* hidden_name, const at::Tensor& hidden,
                    const at::Tensor* delta, const at::Tensor& weight, const at::Tensor& sink_dims,
                    double eps);

/// redistribute and redistribute_.
void check_redistribute(const char* op, const at::Tensor& probs, const at::Tensor& sink_scores,
                        const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask);

/// skinny_linear: input [..., K] of at most kMaxSkinnyRows rows, weight [N, K], bias [N],
/// weight_scale [N] where weight is int8.
void check_skinny_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias,
                         const std::optional<at::Tensor>& weight_scale);

/// skinny_swiglu: gate and up each as skinny_linear's map, of the same sizes, both or neither int8.
void check_skinny_swiglu(const at::Tensor& input, const at::Tensor& gate_weight,
                         const at::Tensor& up_weight, const std::optional<at::Tensor>& gate_bias,
                         const std::optional<at::Tensor>& up_bias,
                         const std::optional<at::Tensor>& gate_scale,
                         const std::optional<at::Tensor>& up_scale);

/// silu_mul: gate [..., F], up of the same dtype and shape, F contiguous in both.
void check_silu_mul(const at::Tensor& gate, const at::Tensor& up);

/// greedy_tokens: logits [B, V], V > 0 and contiguous.
void check_greedy_tokens(const at::Tensor& logits);

/// The tensors of rotate_and_cache.
struct RotaryTensors {
  const at::Tensor& query;
  const at::Tensor& key;
  const at::Tensor& value;
  const at::Tensor& sink_scores;
  const at::Tensor& cos;
  const at::Tensor& sin;
  const at::Tensor& places;
  const at::Tensor& key_cache;
  const at::Tensor& value_cache;
  const at::Tensor& sink_score_cache;
};

/// rotate_and_cache: dtypes, shapes, devices; not the contents of places.
void check_rotate_and_cache(const RotaryTensors& tensors);

/// The tensors that attention reads and fills.
struct AttentionTensors {
  const at::Tensor& query;
  const at::Tensor& key;
  const at::Tensor& value;
  const at::Tensor& sink_scores;
  const at::Tensor& visual_mask;
  const std::optional<at::Tensor>& row_mask;
  const std::optional<at::Tensor>& kv_lengths;
  const std::optional<at::Tensor>& params;
  const std::optional<at::Tensor>& selected;
  const std::optional<at::Tensor>& class_mass;
};

/// attention: dtypes, shapes, devices and `scale`; not the contents of kv_lengths and params.
void check_attention(const AttentionTensors& tensors, double scale);

// What only the CPU can check, because it reads the contents.

/// Every sink dimension in [0, D).
void check_sink_dim_values(const char* op, const at::Tensor& sink_dims, std::int64_t hidden_size);

/// Every length in [0, K].
void check_kv_length_values(const at::Tensor& kv_lengths, std::int64_t num_keys);

/// Every place leaves room for the rows of its sequence.
void check_place_values(const at::Tensor& places, std::int64_t num_rows, std::int64_t capacity);

/// tau, rho, p and min_visual_mass of every sequence in range.
void check_sequence_param_values(const at::Tensor& params);

}  // namespace libvar::checks
