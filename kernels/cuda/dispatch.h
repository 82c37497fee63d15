#pragma once

// From torch's dtypes to the element types of the kernels.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <optional>

#include "cuda/strides.h"

namespace libvar::cuda {

/// Calls `function` with a value of the element type, for the dtypes that the checks let through.
template <typename Function>
void for_element_type(at::ScalarType type, const Function& function) {
  switch (type) {
    case at::kFloat:
      return function(float{});
    case at::kHalf:
      return function(__half{});
    case at::kBFloat16:
      return function(__nv_bfloat16{});
    default:
      TORCH_INTERNAL_ASSERT(false, "dtype ", type, " passed the checks");
  }
}

template <typename T>
const T* input(const at::Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
const T* input(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? input<T>(*tensor) : nullptr;
}

template <typename T>
T* output(const at::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <typename T>
T* output(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? output<T>(*tensor) : nullptr;
}

inline RowStrides row_strides(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline TokenStrides token_strides(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1)};
}

inline TokenStrides token_strides(const std::optional<at::Tensor>& tensor) {
  return tensor.has_value() ? token_strides(*tensor) : TokenStrides{};
}

}  // namespace libvar::cuda
