// skinny_linear on CUDA: the checks, then at::linear.

#include <ATen/core/Tensor.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "checks.h"

namespace libvar {
namespace {

at::Tensor skinny_linear_cuda(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias) {
  checks::check_skinny_linear(input, weight, bias);
  return at::linear(input, weight, bias).contiguous();
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("skinny_linear", &libvar::skinny_linear_cuda);
}
