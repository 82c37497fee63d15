#include "cuda/greedy_tokens.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "cuda/dispatch.h"

namespace libvar {
namespace {

at::Tensor greedy_tokens_cuda(const at::Tensor& logits) {
  checks::check_greedy_tokens(logits);
  const c10::cuda::CUDAGuard guard(logits.device());
  const at::Tensor tokens = at::empty({logits.size(0)}, logits.options().dtype(at::kLong));
  cuda::for_element_type(logits.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::GreedyArguments<T> args = {};
    args.logits = cuda::input<T>(logits);
    args.tokens = cuda::output<std::int64_t>(tokens);
    args.row_stride = logits.stride(0);
    args.num_rows = logits.size(0);
    args.row_size = logits.size(1);
    C10_CUDA_CHECK(cuda::launch_greedy_tokens(args, c10::cuda::getCurrentCUDAStream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return tokens;
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("_greedy_tokens", &libvar::greedy_tokens_cuda);
}
