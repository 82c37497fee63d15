#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "checks.h"
#include "cuda/attention_arguments.h"

namespace libvar {
namespace {

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? std::optional<at::Tensor>(tensor->contiguous()) : std::nullopt;
}

at::Tensor attention_cuda(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                          const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                          const std::optional<at::Tensor>& row_mask,
                          const std::optional<at::Tensor>& kv_lengths,
                          const std::optional<at::Tensor>& params,
                          const std::optional<at::Tensor>& selected,
                          const std::optional<at::Tensor>& class_mass, double scale, double tau,
                          double rho, double p, double min_visual_mass, double ratio_epsilon,
                          std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  const RedistributionRule rule = checks::check_rule(
      "attention", {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_attention({query, key, value, sink_scores, visual_mask, row_mask, kv_lengths,
                           params, selected, class_mass},
                          scale);
  TORCH_CHECK_VALUE(query.size(3) <= cuda::kMaxHeadDim,
                    "attention: expected a head size of at most ", cuda::kMaxHeadDim,
                    " on CUDA, got ", query.size(3));
  TORCH_CHECK_VALUE(query.size(2) <= INT32_MAX / 2 && key.size(2) <= INT32_MAX / 2,
                    "attention: expected fewer than 2^30 rows and keys, got ", query.size(2),
                    " and ", key.size(2));
  const c10::cuda::CUDAGuard guard(query.device());
  const at::Tensor out = at::empty(query.sizes(), query.options());
  const std::optional<at::Tensor> lengths = contiguous(kv_lengths);
  const std::optional<at::Tensor> sequence_params = contiguous(params);
  cuda::for_element_type(query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::AttentionArguments<T> args =
        cuda::attention_arguments<T>(query, key, value, sink_scores, visual_mask, out, scale);
    args.row_mask = cuda::input<bool>(row_mask);
    args.row_mask_stride = cuda::token_strides(row_mask);
    args.kv_lengths = cuda::input<std::int32_t>(lengths);
    args.params = cuda::input<float>(sequence_params);
    args.selected = cuda::output<bool>(selected);
    args.class_mass = cuda::output<float>(class_mass);
    args.rule = rule;
    cuda::run_attention(args, /*classes=*/true, query);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("_attention", &libvar::attention_cuda);
}
