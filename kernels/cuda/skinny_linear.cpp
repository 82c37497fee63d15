// skinny_linear and skinny_swiglu on CUDA: the checks, the choice between our kernel and
// at::linear, its arguments.

#include "cuda/skinny_linear.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "checks.h"
#include "cuda/dispatch.h"
#include "libvar/ops.h"

namespace libvar {
namespace {

static_assert(kMaxSkinnyRows == cuda::kMostSkinnyRows);

/// Most rows for which our kernel is faster than at::linear, for weights in the dtype of the input
/// (measured, decision 0019).
constexpr std::int64_t most_own_rows(at::ScalarType dtype) {
  return dtype == at::kFloat ? kMaxSkinnyRows : 2;
}

bool lies_in_vectors(const at::Tensor& weight) {
  constexpr std::int64_t kVectorBytes = 16;
  return reinterpret_cast<std::uintptr_t>(weight.const_data_ptr()) % kVectorBytes == 0 &&
         (weight.size(0) == 1 || weight.stride(0) * weight.element_size() % kVectorBytes == 0);
}

/// Whether our kernel takes a product of so many rows. An int8 weight it always takes: nothing else
/// reads one without a copy.
bool is_own(std::int64_t rows, const at::Tensor& weight, bool is_int8) {
  return is_int8 || (rows <= most_own_rows(weight.scalar_type()) && lies_in_vectors(weight) &&
                     weight.size(1) <= std::numeric_limits<int>::max() / kMaxSkinnyRows);
}

template <typename W, typename T>
cuda::SkinnyMatrix<W, T> matrix(const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                                const std::optional<at::Tensor>& scale) {
  return {cuda::input<W>(weight), cuda::input<float>(scale), cuda::input<T>(bias),
          weight.stride(0)};
}

std::optional<at::Tensor> contiguous(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? std::optional(tensor->contiguous()) : std::nullopt;
}

/// Calls `launch` with arguments in which all but the matrices is filled in.
template <typename Launch>
at::Tensor run(const at::Tensor& input, std::int64_t out_features, bool is_int8,
               const Launch& launch) {
  const c10::cuda::CUDAGuard guard(input.device());
  const std::int64_t in_features = input.size(-1);
  std::vector<std::int64_t> sizes = input.sizes().vec();
  sizes.back() = out_features;
  const at::Tensor output = at::empty(sizes, input.options());
  const at::Tensor rows = input.reshape({-1, in_features}).contiguous();
  cuda::for_element_type(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const auto with_weight = [&](auto weight_element) {
      cuda::SkinnyArguments<decltype(weight_element), T> args = {};
      args.input = cuda::input<T>(rows);
      args.output = cuda::output<T>(output);
      args.num_rows = rows.size(0);
      args.in_features = in_features;
      args.out_features = out_features;
      args.starts_early = WeightsAreReady::on_this_thread();
      C10_CUDA_CHECK(launch(args, c10::cuda::getCurrentCUDAStream()));
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    };
    is_int8 ? with_weight(std::int8_t{}) : with_weight(T{});
  });
  return output;
}

at::Tensor skinny_linear_cuda(const at::Tensor& input, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias,
                              const std::optional<at::Tensor>& weight_scale) {
  checks::check_skinny_linear(input, weight, bias, weight_scale);
  const bool is_int8 = weight_scale.has_value();
  if (!is_own(input.numel() / input.size(-1), weight, is_int8))
    return at::linear(input, weight, bias).contiguous();
  const std::optional<at::Tensor> biases = contiguous(bias), scales = contiguous(weight_scale);
  return run(input, weight.size(0), is_int8,
             [&]<typename W, typename T>(cuda::SkinnyArguments<W, T>& args, cudaStream_t stream) {
               args.first = matrix<W, T>(weight, biases, scales);
               return cuda::launch_skinny_linear(args, stream);
             });
}

at::Tensor skinny_swiglu_cuda(const at::Tensor& input, const at::Tensor& gate_weight,
                              const at::Tensor& up_weight,
                              const std::optional<at::Tensor>& gate_bias,
                              const std::optional<at::Tensor>& up_bias,
                              const std::optional<at::Tensor>& gate_scale,
                              const std::optional<at::Tensor>& up_scale) {
  checks::check_skinny_swiglu(input, gate_weight, up_weight, gate_bias, up_bias, gate_scale,
                              up_scale);
  const bool is_int8 = gate_scale.has_value();
  const std::int64_t rows = input.numel() / input.size(-1);
  if (!is_own(rows, gate_weight, is_int8) || !is_own(rows, up_weight, is_int8)) {
    return silu_mul(at::linear(input, gate_weight, gate_bias).contiguous(),
                    at::linear(input, up_weight, up_bias).contiguous());
  }
  const std::optional<at::Tensor> gate_biases = contiguous(gate_bias),
                                  gate_scales = contiguous(gate_scale),
                                  up_biases = contiguous(up_bias), up_scales = contiguous(up_scale);
  return run(input, gate_weight.size(0), is_int8,
             [&]<typename W, typename T>(cuda::SkinnyArguments<W, T>& args, cudaStream_t stream) {
               args.first = matrix<W, T>(gate_weight, gate_biases, gate_scales);
               args.second = matrix<W, T>(up_weight, up_biases, up_scales);
               return cuda::launch_skinny_swiglu(args, stream);
             });
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("skinny_linear", &libvar::skinny_linear_cuda);
  m.impl("skinny_swiglu", &libvar::skinny_swiglu_cuda);
}
