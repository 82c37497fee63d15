// silu_mul on the CPU: PyTorch's operators.

#include <ATen/core/Tensor.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include "checks.h"

namespace libvar::cpu {
namespace {

at::Tensor silu_mul_cpu(const at::Tensor& gate, const at::Tensor& up) {
  checks::check_silu_mul(gate, up);
  return at::silu(gate).mul_(up).contiguous();
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_silu_mul", &libvar::cpu::silu_mul_cpu);
}
