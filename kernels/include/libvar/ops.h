#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>

#include "libvar/redistribution_rule.h"

namespace libvar {

// Sizes in the comments: B batch, H query heads, H_kv key heads, Q query rows, K keys, Dh head
// size, D hidden size, S sink dimensions. Every op runs on CPU and CUDA and has a Meta kernel; the
// typed functions below go through the dispatcher, so callers never name a device.

/// Makes sure that the ops are registered as torch.ops.libvar.*; call it when only op names are
/// used.
///
/// A program that uses no symbol of libvar_ops.so may be linked without it, and then has no ops.
void ensure_ops_registered();

/// Sink score phi of every token.
///
/// Source: arXiv:2503.03321, Section 3.
///     phi = max_{d in D_sink} |x[d]| / sqrt(mean_d(x[d]^2) + eps)
/// @param hidden     [..., D] float32|float16|bfloat16, D contiguous
/// @param sink_dims  [S] int64, same device, 1 <= S <= 8
/// @param eps        the RMSNorm's epsilon, > 0
/// @return           [...] float32
/// @throws c10::ValueError  shapes disagree; on the CPU a dimension outside [0, D) (CUDA ignores
/// it)
/// @throws c10::TypeError   dtype not listed
/// Numerics: reductions in float32, relative error within kSinkScoreBound (numerics.h).
at::Tensor sink_scores(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps = 1e-6);

/// RMSNorm of a layer and phi of its input, in one read of hidden.
///
/// Source: RMSNorm, arXiv:1910.07467, with the roundings of Llama in transformers; phi as
/// sink_scores.
///     normed = weight * cast(x * rsqrt(mean(x^2) + eps))      cast to the dtype of hidden before
///     the weight
/// @param hidden     [..., D] float32|float16|bfloat16, D contiguous
/// @param weight     [D], dtype and device of hidden, contiguous
/// @param sink_dims  [S] int64, same device, S <= 8; S may be 0: phi is then 0 everywhere
/// @param eps        > 0, of the norm and of phi
/// @return           (normed [..., D] in the dtype of hidden, contiguous; phi [...] float32)
/// @throws           as sink_scores
/// Numerics: reductions in float32, phi within kSinkScoreBound (numerics.h); normed is rounded to
/// the dtype before the weight multiplies it and after. Cost: one read of hidden from memory and
/// one write of normed; no host synchronisation.
std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores(const at::Tensor& hidden,
                                                        const at::Tensor& weight,
                                                        const at::Tensor& sink_dims,
                                                        double eps = 1e-6);

/// residual += delta, rounded to its dtype, then RMSNorm and phi of the rounded sum.
///
/// Source: as rms_norm_sink_scores.
///     residual = cast(residual + delta)
/// @param residual   [..., D] float32|float16|bfloat16, D contiguous; changed in place
/// @param delta      [..., D], dtype, shape and device of residual, D contiguous
/// @param weight     [D], as rms_norm_sink_scores; likewise sink_dims (S <= 8) and eps
/// @return           (normed, phi) of the new residual, as rms_norm_sink_scores
/// @throws           as sink_scores
/// Numerics: as rms_norm_sink_scores of the new residual. Cost: one read of residual and delta from
/// memory and one write of residual and normed; no host synchronisation.
std::tuple<at::Tensor, at::Tensor> add_rms_norm_sink_scores(at::Tensor& residual,
                                                            const at::Tensor& delta,
                                                            const at::Tensor& weight,
                                                            const at::Tensor& sink_dims,
                                                            double eps = 1e-6);

/// Most rows that skinny_linear and skinny_swiglu take.
inline constexpr int kMaxSkinnyRows = 8;

/// Linear map of a few rows (a "skinny" matrix product; of one row: GEMV), at the speed at which
/// the weight is read.
///
///     out = input weight^T + bias                     weight in the dtype of input
///     out = (input weight^T) * weight_scale + bias    weight int8, with a scale for each of its
///     rows
/// @param input         [..., K] float32|float16|bfloat16, at most kMaxSkinnyRows rows, K > 0
/// @param weight        [N, K], device of input, K contiguous; dtype of input, or int8 with a scale
/// @param bias          [N] or none, dtype and device of input
/// @param weight_scale  [N] float32, device of input; none: weight has the dtype of input
/// @return              [..., N], dtype and device of input, contiguous
/// @throws c10::ValueError  shapes disagree, too many rows, weight's strides
/// @throws c10::TypeError   dtype not listed
/// Numerics: products and sums in float32, the bias added before the one rounding to the dtype;
/// error within kLinearBound (numerics.h). Products of half types, with each other and with int8,
/// are exact. A row's bits do not depend on the other rows nor on threads. On a CPU with bfloat16
/// dot products bfloat16 subnormal numbers count as 0. On CUDA at::linear, with its numerics, takes
/// what it is faster at, and weights in the dtype of input whose rows do not start at multiples of
/// 16 bytes (decision 0019).
/// Cost: one read of weight from memory, whatever the number of rows; no host synchronisation.
at::Tensor skinny_linear(const at::Tensor& input, const at::Tensor& weight,
                         const std::optional<at::Tensor>& bias = std::nullopt,
                         const std::optional<at::Tensor>& weight_scale = std::nullopt);

/// The gated half of an MLP for a few rows (SwiGLU), at the speed at which the weights are read.
///
/// Source: arXiv:2002.05202, Equation 5; silu(x) = x / (1 + exp(-x)).
///     out = silu(input gate_weight^T + gate_bias) * (input up_weight^T + up_bias)
/// @param input        as skinny_linear
/// @param gate_weight  [N, K], as weight of skinny_linear
/// @param up_weight    [N, K], the same
/// @param gate_bias    [N] or none, likewise up_bias: as bias of skinny_linear
/// @param gate_scale   [N], with up_scale, where the weights are int8; or both none
/// @return             [..., N], dtype and device of input, contiguous
/// @throws             as skinny_linear; c10::ValueError where one scale is given alone
/// Numerics: both maps are rounded to the dtype as skinny_linear's are, then silu, then the
/// product: the same roundings as separate operators make. On CUDA at::linear and silu_mul run
/// where skinny_linear takes at::linear. Cost: one read of both weights from memory; no host
/// synchronisation.
at::Tensor skinny_swiglu(const at::Tensor& input, const at::Tensor& gate_weight,
                         const at::Tensor& up_weight,
                         const std::optional<at::Tensor>& gate_bias = std::nullopt,
                         const std::optional<at::Tensor>& up_bias = std::nullopt,
                         const std::optional<at::Tensor>& gate_scale = std::nullopt,
                         const std::optional<at::Tensor>& up_scale = std::nullopt);

/// The elementwise part of a gated MLP (SwiGLU), for the many rows of a prompt.
///
/// Source: arXiv:2002.05202, Equation 5; silu(x) = x / (1 + exp(-x)).
///     out = silu(gate) * up
/// @param gate  [..., F] float32|float16|bfloat16, F > 0 and contiguous: may be half of the rows of
///              a product that holds both
/// @param up    [..., F], the same; dtype, shape and device of gate
/// @return      [..., F], dtype and device of gate, contiguous, fresh storage
/// @throws c10::ValueError  shapes, devices or strides
/// @throws c10::TypeError   dtypes
/// Numerics: silu is rounded to the dtype, then the product: the same roundings as separate
/// operators make. Cost: on CUDA one read of gate and up and one write of out; no copy where the
/// rows are one distance apart; no host synchronisation. The CPU runs the operators.
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& up);

/// The token of the largest logit of each row.
///
///     out[b] = argmax_v logits[b, v]
/// @param logits  [B, V] float32|float16|bfloat16, V > 0 and contiguous
/// @return        [B] int64, device of logits; of equal logits the lowest token; -1 where the
///                largest is no finite number or one of the row is NaN
/// @throws c10::ValueError  shape or strides
/// @throws c10::TypeError   dtype
/// Numerics: exact. Cost: on CUDA one launch, a block for each row; no host synchronisation.
at::Tensor greedy_tokens(const at::Tensor& logits);

/// While one lives, skinny_linear and skinny_swiglu of its thread read weights and scales on a GPU
/// before the stream's previous kernel has ended (programmatic dependent launch, sm_90 and newer):
/// right where no kernel still to run writes them, as in a decoder whose weights are loaded.
/// Results are the same.
class WeightsAreReady {
 public:
  WeightsAreReady();
  ~WeightsAreReady();
  WeightsAreReady(const WeightsAreReady&) = delete;
  WeightsAreReady& operator=(const WeightsAreReady&) = delete;

  /// Whether one lives on the calling thread.
  static bool on_this_thread();

 private:
  bool before_;
};

/// One layer's projections of some tokens, before their positions turn them.
struct RotaryInputs {
  at::Tensor query;        ///< [B, H, Q, Dh] float32|float16|bfloat16, Dh even and contiguous
  at::Tensor key;          ///< [B, H_kv, Q, Dh], dtype of query
  at::Tensor value;        ///< [B, H_kv, Q, Dh]
  at::Tensor sink_scores;  ///< [B, Q] float32
  at::Tensor cos, sin;     ///< [B, Q, Dh], or [1, Q, Dh] for all sequences; dtype of query
};

/// Turns queries and keys by their positions and stores keys, values and sink scores where the
/// attention of later tokens finds them: one launch for what a layer does between its projections
/// and its attention.
///
/// Source: rotary embedding, arXiv:2104.09864, in the rotate-half convention of Llama:
///     rotate(x) = x * cos + (-x[Dh/2:], x[:Dh/2]) * sin
/// Row i of sequence b is stored at places[b] + i.
/// @param places            [B] int64 on the device
/// @param key_cache         [B, H_kv, K, Dh], dtype of query, Dh contiguous; changed, as the next
///                          two
/// @param value_cache       [B, H_kv, K, Dh]
/// @param sink_score_cache  [B, K] float32
/// @return                  the turned queries [B, H, Q, Dh], contiguous
/// @throws c10::ValueError  shapes disagree; on the CPU a place outside [0, K - Q] (CUDA doesn't
///                          store rows outside)
/// @throws c10::TypeError   dtypes
/// Numerics: products are rounded to the dtype before they are added, as in transformers; results
/// are the same bits on every device. Cost: one read and one write, no host synchronisation.
at::Tensor rotate_and_cache(const RotaryInputs& inputs, const at::Tensor& places,
                            at::Tensor& key_cache, at::Tensor& value_cache,
                            at::Tensor& sink_score_cache);

/// Moves attention from sink tokens to the non-sink visual tokens of the selected rows.
///
/// Source: arXiv:2503.03321, Section 5, Equations 3 and 4; see RedistributionRule.
/// @param probs        [B, H, Q, K] float32|float16|bfloat16, K contiguous, rows are probability
/// distributions
/// @param sink_scores  [B, K] float32, phi of each key
/// @param visual_mask  [B, K] bool, true at visual tokens
/// @param row_mask     [B, Q] bool or none (every row): rows that may be selected. The op knows no
/// positions: it counts
///                     all K keys, and its caller clears the mask for rows before the first visual
///                     sink.
/// @param rule         thresholds, in the ranges that RedistributionRule states
/// @return             [B, H, Q, K], dtype and device of probs, fresh storage
/// @throws c10::ValueError  shapes disagree, a parameter is out of range, a class is both source
/// and target
/// @throws c10::TypeError   dtype not listed, or a mask is not bool
/// Numerics: sums in float32; every element within kRedistributeBound (numerics.h). Rows that are
/// not selected are returned bit for bit. Cost: one read and one write of probs, no host
/// synchronisation.
at::Tensor redistribute(const at::Tensor& probs, const at::Tensor& sink_scores,
                        const at::Tensor& visual_mask,
                        const std::optional<at::Tensor>& row_mask = std::nullopt,
                        const RedistributionRule& rule = {});

/// redistribute in place; rows that are not selected are not written.
at::Tensor& redistribute_(at::Tensor& probs, const at::Tensor& sink_scores,
                          const at::Tensor& visual_mask,
                          const std::optional<at::Tensor>& row_mask = std::nullopt,
                          const RedistributionRule& rule = {});

/// What the attention of one layer is computed from.
struct AttentionInputs {
  at::Tensor query;  ///< [B, H, Q, Dh] float32|float16|bfloat16, any strides with Dh contiguous
  at::Tensor key;    ///< [B, H_kv, K, Dh], dtype of query; head h reads H_kv head h / (H / H_kv); K
                     ///< may be a capacity
  at::Tensor value;  ///< [B, H_kv, K, Dh]
  at::Tensor sink_scores;              ///< [B, K] float32
  at::Tensor visual_mask;              ///< [B, K] bool
  std::optional<at::Tensor> row_mask;  ///< [B, Q] bool; none: rows whose own position is not visual
  std::optional<at::Tensor> kv_lengths;  ///< [B] int32; none: K
  double scale = 1.0;                    ///< multiplies query * key
};

/// Tensors that `attention` fills beside its result, for statistics and analyses. Undefined ones
/// are not filled, the others must be contiguous.
struct AttentionTrace {
  at::Tensor selected;    ///< [B, H, Q] bool: the row was redistributed
  at::Tensor class_mass;  ///< [B, H, Q, 4] float32: mass of each TokenClass before redistribution
};

/// Causal softmax attention with redistribution, reading keys and values as plain attention does.
///
/// Source: arXiv:2503.03321, Equations 3 and 4: with o_C and l_C the sums of exp(score) * value and
/// of exp(score) over the keys of class C, and the class weights w_C of RedistributionRule,
///     out = sum_C w_C o_C / sum_C l_C
/// (CUDA: one online softmax state per class; CPU: w_C is multiplied into the probabilities.)
/// Row i of batch b is position n = kv_lengths[b] - Q + i and sees keys 0..n. Rule 3 of the method
/// (a visual sink among the keys that the row sees) is by position. Whatever lies at or past
/// kv_lengths[b], NaN included, is never used.
/// @param inputs   see AttentionInputs
/// @param rule     classes and head rule; its tau, rho, p and min_visual_mass are read unless
/// `params` is given
/// @param params   [B, 4] float32 on the device: tau, rho, p, min_visual_mass of each sequence
/// (valid under graph replay)
/// @param trace    filled where its tensors are defined
/// @return         [B, H, Q, Dh], dtype of query, contiguous. A row that sees no key, or none with
/// a score above -inf, is
///                 zero.
/// @throws c10::ValueError  shapes or parameters; on the CPU lengths outside [0, K] (CUDA clamps
///                          them) and `params` out of range; on CUDA a head size above 256
/// @throws c10::TypeError   dtypes
/// Numerics: scores, sums and states in float32; error within kAttentionBound (numerics.h). On
/// CUDA's tensor cores (half types, more than two rows for a KV head) the softmax weights are
/// rounded to the dtype before they meet the values, as flash attention does; so are, on a CPU with
/// bfloat16 dot products, the weighted probabilities of bfloat16 rows. NaN stays in its row. A
/// row's bits depend on its own keys, tau and the class sets alone, not on batch, capacity, what
/// other rows hold or threads; weights of 1 (p = 0, or a row that is not selected) give the bits of
/// HeadRule::kNone at the same tau. On CUDA they depend on the kernel and its ranges of keys
/// too, which are chosen by dtype, head size, alignment, and the numbers of rows and heads
/// (decision 0010). Cost: reads K and V once per KV head and tile of rows; holds one tile of
/// scores, never Q x K; on CUDA at most about 64 MiB of partial states; no host sync.
at::Tensor attention(const AttentionInputs& inputs, const RedistributionRule& rule = {},
                     const std::optional<at::Tensor>& params = std::nullopt,
                     AttentionTrace* trace = nullptr);

}  // namespace libvar
