#pragma once

#include <ATen/core/Tensor.h>

#include "vision/config.h"

namespace libvar {

/// The activation function, elementwise, in the dtype of `input`.
///
///     kQuickGelu  x * sigmoid(1.702 x)
///     kGelu       x * Phi(x), exact
///     kGeluTanh   its tanh approximation
at::Tensor activate(Activation activation, const at::Tensor& input);

}  // namespace libvar
