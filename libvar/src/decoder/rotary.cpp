#include "decoder/rotary.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/tensor.h>

#include <vector>

namespace libvar {

RotaryEmbedding::RotaryEmbedding(const DecoderConfig& config, const ComputeTarget& target) {
  // On the CPU, so that every device gets the same table.
  const at::Tensor exponents =
      at::arange(0, config.head_dim, 2, at::kLong).to(at::kFloat).div_(config.head_dim);
  const at::Tensor frequencies =
      at::pow(config.rope_theta, exponents).reciprocal_().div_(config.rope_factor);
  const at::Tensor half = at::outer(at::arange(config.max_positions, at::kFloat), frequencies);
  const at::Tensor angles = at::cat({half, half}, 1);
  cos_ = angles.cos().to(target.device, target.dtype);
  sin_ = angles.sin().to(target.device, target.dtype);
  if (config.rope_sections.empty()) return;
  std::vector<std::int64_t> axis;
  for (int half_index = 0; half_index < 2; ++half_index) {
    for (std::size_t i = 0; i < config.rope_sections.size(); ++i)
      axis.insert(axis.end(), static_cast<std::size_t>(config.rope_sections[i]),
                  static_cast<std::int64_t>(i));
  }
  axis_ = at::tensor(axis, at::kLong).view({1, 1, -1}).to(target.device);
}

at::Tensor RotaryEmbedding::pick(const at::Tensor& table, const at::Tensor& positions) const {
  const at::Tensor rows = at::embedding(table, positions);  // [axes, Q, Dh]
  if (!axis_.defined()) return rows;
  return rows.gather(0, axis_.expand({1, rows.size(1), rows.size(2)}));
}

RotaryAngles RotaryEmbedding::angles(const at::Tensor& positions) const {
  return {pick(cos_, positions), pick(sin_, positions)};
}

}  // namespace libvar
