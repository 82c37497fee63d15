#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "libvar/request.h"

namespace libvar {

/// @throws ConfigError  names the field that is out of range
void validate(const GenerationParams& params);

/// The n-th number of a stream that depends on the seed alone, uniform in [0, 1): splitmix64 of a
/// counter.
double uniform_draw(std::uint64_t seed, std::uint64_t n);

/// Chooses one token after another.
///
/// Greedy (temperature 0): the largest logit, the lowest id of equal ones. Else, in transformers'
/// order: logits are divided by the temperature; top_k keeps the k largest and what equals the
/// k-th; top_p keeps the smallest set of most likely tokens whose probabilities reach top_p; one
/// draw is made from what is left. Draws are made on the host from `seed` and their number, so they
/// don't depend on the device.
class Sampler {
 public:
  explicit Sampler(const GenerationParams& params) : params_(params) {}

  /// @param logits  [V], any floating dtype and device
  /// @return        the token's id
  std::int64_t operator()(const at::Tensor& logits);

 private:
  GenerationParams params_;
  std::uint64_t draws_ = 0;
};

}  // namespace libvar
