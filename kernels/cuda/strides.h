#pragma once

// Strides of the kernels' tensors. No torch, no CUDA runtime: the torch side is compiled by g++.

#include <cstdint>

#include "classes.h"

namespace libvar::cuda {

/// Elements from one index to the next of [batch, head, row, contiguous] tensors.
struct RowStrides {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t row = 0;

  LIBVAR_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return b * batch + h * head + i * row;
  }
};

/// Elements from one index to the next of [batch, token] tensors.
struct TokenStrides {
  std::int64_t batch = 0;
  std::int64_t token = 0;

  LIBVAR_HOST_DEVICE std::int64_t offset(std::int64_t b, std::int64_t j) const {
    return b * batch + j * token;
  }
};

}  // namespace libvar::cuda
