#include "vision/activation.h"

#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/silu.h>

#include "libvar/error.h"

namespace libvar {

at::Tensor activate(Activation activation, const at::Tensor& input) {
  switch (activation) {
    case Activation::kQuickGelu:
      return at::sigmoid(input.mul(1.702)).mul_(input);
    case Activation::kGelu:
      return at::gelu(input);
    case Activation::kGeluTanh:
      return at::gelu(input, "tanh");
    case Activation::kSilu:
      return at::silu(input);
    case Activation::kRelu:
      return at::relu(input);
  }
  throw ConfigError("vision: unknown activation");
}

}  // namespace libvar
