#include "convert/quantize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

namespace libvar {

at::Tensor row_scales(const at::Tensor& matrix) {
  return matrix.abs().amax(1).div_(127.0);
}

at::Tensor quantize_rows(const at::Tensor& matrix) {
  const at::Tensor scale = row_scales(matrix).unsqueeze(1);
  // A quotient of subnormal numbers can lie a little above 127; 0 / 0 is no number.
  const at::Tensor quotient = at::where(scale == 0, at::zeros_like(scale), matrix / scale);
  return quotient.round().clamp_(-127.0, 127.0).to(at::kChar);
}

}  // namespace libvar
