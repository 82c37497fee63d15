#pragma once

#include <ATen/core/Tensor.h>

namespace libvar {

/// Scale of each row of a matrix [N, K]: its largest magnitude / 127, float32 [N]; 0 of a row of
/// zeros.
at::Tensor row_scales(const at::Tensor& matrix);

/// The matrix in multiples of its rows' scales, to the nearest: int8 [N, K] in [-127, 127], so that
/// |matrix - scale * result| <= scale / 2, but for the roundings of float32.
/// @param matrix  [N, K] float32, finite
at::Tensor quantize_rows(const at::Tensor& matrix);

}  // namespace libvar
