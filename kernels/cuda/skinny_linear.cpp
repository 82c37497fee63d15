// skinny_linear on CUDA: the checks, then at::linear.

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mul.h>
#include <torch/library.h>

#include "checks.h"

namespace libvar {
namespace {

at::Tensor skinny_linear_cuda(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias,
                              const std::optional<at::Tensor>& weight_scale) {
  checks::check_skinny_linear(input, weight, bias, weight_scale);
  if (!weight_scale.has_value()) return at::linear(input, weight, bias).contiguous();
  const at::Tensor scaled = weight.to(at::kFloat).mul_(weight_scale->unsqueeze(1));
  return at::linear(input, scaled.to(input.scalar_type()), bias).contiguous();
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("skinny_linear", &libvar::skinny_linear_cuda);
}
