#include "cuda/silu_mul.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "cuda/dispatch.h"
#include "cuda/tokens.h"

namespace libvar {
namespace {

at::Tensor silu_mul_cuda(const at::Tensor& gate, const at::Tensor& up) {
  checks::check_silu_mul(gate, up);
  const c10::cuda::CUDAGuard guard(gate.device());
  const at::Tensor output = at::empty(gate.sizes(), gate.options());
  const at::Tensor gates = cuda::Tokens(gate).rows, ups = cuda::Tokens(up).rows;
  cuda::for_element_type(gate.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::SiluMulArguments<T> args = {};
    args.gate = cuda::input<T>(gates);
    args.up = cuda::input<T>(ups);
    args.output = cuda::output<T>(output);
    args.gate_stride = gates.stride(0);
    args.up_stride = ups.stride(0);
    args.num_rows = gates.size(0);
    args.row_size = gates.size(1);
    C10_CUDA_CHECK(cuda::launch_silu_mul(args, c10::cuda::getCurrentCUDAStream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return output;
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("_silu_mul", &libvar::silu_mul_cuda);
}
