// greedy_tokens on the CPU: PyTorch's operators.

#include <ATen/core/Tensor.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/max.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include "checks.h"

namespace libvar::cpu {
namespace {

at::Tensor greedy_tokens_cpu(const at::Tensor& logits) {
  checks::check_greedy_tokens(logits);
  const auto [largest, token] = at::max(logits, -1);
  return at::where(at::isfinite(largest), token, -1);
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_greedy_tokens", &libvar::cpu::greedy_tokens_cpu);
}
