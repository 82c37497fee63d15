#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "libvar/request.h"

namespace libvar {

/// @throws ConfigError  names the field that is out of range
void validate(const GenerationParams& params);

/// The n-th number of a stream that depends on the seed alone, uniform in [0, 1): splitmix64 of a
/// counter.
double uniform_draw(std::uint64_t seed, std::uint64_t n);

/// What `choose_tokens` computes; the costlier ones do all that those before them do.
enum class ChoiceMethod : std::uint8_t {
  kGreedy,
  kDraw,          ///< some sequence draws from all tokens
  kDrawFromBest,  ///< some sequence has a top_k or top_p: logits are sorted
};

/// Settings of several sequences on the device.
struct ChoiceSettings {
  at::Tensor temperature;  ///< [B] float64; 0: greedy
  at::Tensor top_k;        ///< [B] int64; at least 1
  at::Tensor top_p;        ///< [B] float64
};

/// The least method that does what the request asks for.
ChoiceMethod choice_method(const GenerationParams& params);

/// Settings for sequences of a vocabulary, on the CPU.
ChoiceSettings choice_settings(const std::vector<GenerationParams>& params,
                               std::int64_t vocabulary);

/// Chooses a token for each sequence, on the device alone.
///
/// Greedy (temperature 0): as greedy_tokens. Else, in transformers'
/// order: logits are divided by the temperature; top_k keeps the k largest and what equals the
/// k-th; top_p keeps the smallest set of most likely tokens whose probabilities reach top_p; the
/// uniform number says how far to go through what is left in the order of ids. In float64.
/// @param logits    [B, V] float32|float16|bfloat16
/// @param uniforms  [B] float64 in [0, 1); not read by kGreedy
/// @return          [B] int64; -1 where the logits are not finite
at::Tensor choose_tokens(const at::Tensor& logits, const ChoiceSettings& settings,
                         const at::Tensor& uniforms, ChoiceMethod method);

/// Chooses one token now. @param logits  [V]  @param draw  number of tokens chosen before
std::int64_t choose_token(const at::Tensor& logits, const GenerationParams& params,
                          std::uint64_t draw);

}  // namespace libvar
