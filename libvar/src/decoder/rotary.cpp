#include "decoder/rotary.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>

namespace libvar {

RotaryEmbedding::RotaryEmbedding(const DecoderConfig& config, const ComputeTarget& target) {
  // On the CPU, so that every device gets the same table.
  const at::Tensor exponents =
      at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat).div_(config.head_dim);
  const at::Tensor frequencies = at::pow(config.rope_theta, exponents).reciprocal_();
  const at::Tensor half = at::outer(at::arange(config.max_positions, at::kFloat), frequencies);
  const at::Tensor angles = at::cat({half, half}, 1);
  cos_ = angles.cos().to(target.device, target.dtype);
  sin_ = angles.sin().to(target.device, target.dtype);
}

RotaryAngles RotaryEmbedding::angles(const at::Tensor& positions) const {
  return {at::embedding(cos_, positions).unsqueeze(1), at::embedding(sin_, positions).unsqueeze(1)};
}

at::Tensor rotate(const at::Tensor& heads, const RotaryAngles& angles) {
  const std::int64_t half = heads.size(-1) / 2;
  const at::Tensor turned =
      at::cat({heads.narrow(-1, half, half).neg(), heads.narrow(-1, 0, half)}, -1);
  return heads.mul(angles.cos).add_(turned.mul(angles.sin));
}

}  // namespace libvar
