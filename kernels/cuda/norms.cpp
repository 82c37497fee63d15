#include "cuda/norms.h"

#include <ATen/MemoryOverlap.h>
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

using cuda::Tokens;

void run(const at::Tensor& hidden, const at::Tensor* delta, const at::Tensor* weight,
         const at::Tensor& sink_dims, double eps, const at::Tensor* normed, const at::Tensor& phi) {
  const c10::cuda::CUDAGuard guard(hidden.device());
  const at::Tensor dims = sink_dims.contiguous();
  cuda::for_element_type(hidden.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::NormArguments<T> args = {};
    args.hidden = cuda::input<T>(hidden);
    args.delta = delta != nullptr ? cuda::input<T>(*delta) : nullptr;
    args.residual = delta != nullptr ? cuda::output<T>(hidden) : nullptr;
    args.weight = weight != nullptr ? cuda::input<T>(*weight) : nullptr;
    args.sink_dims = cuda::input<std::int64_t>(dims);
    args.normed = normed != nullptr ? cuda::output<T>(*normed) : nullptr;
    args.phi = cuda::output<float>(phi);
    args.hidden_stride = hidden.stride(0);
    args.delta_stride = delta != nullptr ? delta->stride(0) : 0;
    args.num_tokens = hidden.size(0);
    args.hidden_size = hidden.size(1);
    args.num_sink_dims = static_cast<int>(dims.size(0));
    args.eps = static_cast<float>(eps);
    C10_CUDA_CHECK(cuda::launch_norm(args, c10::cuda::getCurrentCUDAStream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

at::Tensor empty_phi(const at::Tensor& hidden) {
  return at::empty(hidden.sizes().slice(0, static_cast<std::size_t>(hidden.dim() - 1)),
                   hidden.options().dtype(at::kFloat));
}

at::Tensor sink_scores_cuda(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  checks::check_sink_scores(hidden, sink_dims, eps);
  const c10::cuda::CUDAGuard guard(hidden.device());
  const at::Tensor phi = empty_phi(hidden);
  run(Tokens(hidden).rows, nullptr, nullptr, sink_dims, eps, nullptr, phi);
  return phi;
}

std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores_cuda(const at::Tensor& hidden,
                                                             const at::Tensor& weight,
                                                             const at::Tensor& sink_dims,
                                                             double eps) {
  checks::check_rms_norm("rms_norm_sink_scores", "hidden", hidden, nullptr, weight, sink_dims, eps);
  const c10::cuda::CUDAGuard guard(hidden.device());
  const at::Tensor normed = at::empty(hidden.sizes(), hidden.options());
  const at::Tensor phi = empty_phi(hidden);
  run(Tokens(hidden).rows, nullptr, &weight, sink_dims, eps, &normed, phi);
  return {normed, phi};
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm_sink_scores_cuda(at::Tensor& residual,
                                                                 const at::Tensor& delta,
                                                                 const at::Tensor& weight,
                                                                 const at::Tensor& sink_dims,
                                                                 double eps) {
  checks::check_rms_norm("add_rms_norm_sink_scores", "residual", residual, &delta, weight,
                         sink_dims, eps);
  at::assert_no_internal_overlap(residual);
  const c10::cuda::CUDAGuard guard(residual.device());
  const at::Tensor normed = at::empty(residual.sizes(), residual.options());
  const at::Tensor phi = empty_phi(residual);
  const Tokens tokens(residual);
  const at::Tensor delta_rows = Tokens(delta).rows;
  run(tokens.rows, &delta_rows, &weight, sink_dims, eps, &normed, phi);
  if (!tokens.is_view) residual.copy_(tokens.rows.view(residual.sizes()));
  return {normed, phi};
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("sink_scores", &libvar::sink_scores_cuda);
  m.impl("rms_norm_sink_scores", &libvar::rms_norm_sink_scores_cuda);
  m.impl("add_rms_norm_sink_scores", &libvar::add_rms_norm_sink_scores_cuda);
}
