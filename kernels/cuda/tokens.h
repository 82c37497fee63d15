#pragma once

// A tensor's rows as the kernels that take one row after another see them.

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace libvar::cuda {

/// The leading dimensions of [..., D] as one, without copying. The kernels know one distance
/// between tokens; where a tensor has none, `rows` holds a contiguous copy.
struct Tokens {
  at::Tensor rows;  // [T, D]
  bool is_view;

  explicit Tokens(const at::Tensor& tensor) {
    const std::int64_t hidden_size = tensor.size(-1);
    is_view = true;
    std::int64_t stride = hidden_size;
    std::int64_t covered = 1;
    for (std::int64_t i = tensor.dim() - 2; i >= 0; --i) {
      if (tensor.size(i) == 1) continue;
      if (covered == 1) stride = tensor.stride(i);
      is_view = is_view && tensor.stride(i) == stride * covered;
      covered *= tensor.size(i);
    }
    if (tensor.numel() == 0) covered = 0;
    rows = is_view ? tensor.as_strided({covered, hidden_size}, {stride, 1})
                   : tensor.contiguous().view({covered, hidden_size});
  }
};

}  // namespace libvar::cuda
