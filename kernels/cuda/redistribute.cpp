#include "cuda/redistribute.h"

#include <ATen/MemoryOverlap.h>
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

/// Reads probs, writes out, which may be probs.
void run(const at::Tensor& probs, const at::Tensor& out, const at::Tensor& sink_scores,
         const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask,
         const RedistributionRule& rule) {
  const c10::cuda::CUDAGuard guard(probs.device());
  cuda::for_element_type(probs.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::RedistributeArguments<T> args = {};
    args.probs = cuda::input<T>(probs);
    args.out = cuda::output<T>(out);
    args.sink_scores = cuda::input<float>(sink_scores);
    args.visual_mask = cuda::input<bool>(visual_mask);
    args.row_mask = cuda::input<bool>(row_mask);
    args.probs_stride = cuda::row_strides(probs);
    args.out_stride = cuda::row_strides(out);
    args.sink_scores_stride = cuda::token_strides(sink_scores);
    args.visual_mask_stride = cuda::token_strides(visual_mask);
    args.row_mask_stride = cuda::token_strides(row_mask);
    args.batch = probs.size(0);
    args.num_heads = probs.size(1);
    args.num_rows = probs.size(2);
    args.num_keys = probs.size(3);
    args.rule = rule;
    C10_CUDA_CHECK(cuda::launch_redistribute(args, c10::cuda::getCurrentCUDAStream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
}

at::Tensor redistribute_cuda(const at::Tensor& probs, const at::Tensor& sink_scores,
                             const at::Tensor& visual_mask,
                             const std::optional<at::Tensor>& row_mask, double tau, double rho,
                             double p, double min_visual_mass, double ratio_epsilon,
                             std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  const RedistributionRule rule = checks::check_rule(
      "redistribute", {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute("redistribute", probs, sink_scores, visual_mask, row_mask);
  const c10::cuda::CUDAGuard guard(probs.device());
  const at::Tensor out = at::empty(probs.sizes(), probs.options());
  run(probs, out, sink_scores, visual_mask, row_mask, rule);
  return out;
}

void redistribute_in_place_cuda(at::Tensor& probs, const at::Tensor& sink_scores,
                                const at::Tensor& visual_mask,
                                const std::optional<at::Tensor>& row_mask, double tau, double rho,
                                double p, double min_visual_mass, double ratio_epsilon,
                                std::int64_t sources, std::int64_t targets,
                                std::int64_t head_rule) {
  const RedistributionRule rule = checks::check_rule(
      "redistribute_", {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute("redistribute_", probs, sink_scores, visual_mask, row_mask);
  at::assert_no_internal_overlap(probs);
  run(probs, probs, sink_scores, visual_mask, row_mask, rule);
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("_redistribute", &libvar::redistribute_cuda);
  m.impl("_redistribute_", &libvar::redistribute_in_place_cuda);
}
