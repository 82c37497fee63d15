// skinny_linear and skinny_swiglu on the CPU: checks, preparation of the input, threads. The
// computation is in skinny_linear_kernel.cpp.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/element_type.h"
#include "cpu/skinny_linear_kernel.h"
#include "libvar/ops.h"

namespace libvar::cpu {
namespace {

// Weight elements below which a second thread costs more than it gives.
constexpr std::int64_t kGrainElements = std::int64_t{1} << 17;

static_assert(kMostInputRows == kMaxSkinnyRows);

/// The rows of an input as the kernel of the chosen build wants to meet them.
class PreparedInput {
 public:
  PreparedInput(const at::Tensor& input, bool is_int8)
      : input_(input), is_int8_(is_int8), type_(element_type(input.scalar_type())) {
    const std::int64_t in_features = input.size(-1);
    const at::Tensor rows = input.reshape({-1, in_features}).contiguous();
    num_rows_ = rows.size(0);
    const std::int64_t row_bytes = prepared_row_bytes(in_features);
    prepared_ = at::empty({num_rows_ * row_bytes}, at::TensorOptions().dtype(at::kByte));
    auto* target = reinterpret_cast<std::byte*>(prepared_.mutable_data_ptr<std::uint8_t>());
    const auto* source = static_cast<const std::byte*>(rows.const_data_ptr());
    const auto source_bytes = in_features * static_cast<std::int64_t>(rows.element_size());
    const auto prepare = LIBVAR_CPU_BUILDS(prepare_input).chosen();
    for (std::int64_t m = 0; m < num_rows_; ++m)
      prepare(type_, is_int8, source + m * source_bytes, in_features, target + m * row_bytes);
  }

  /// The linear map of the input.
  at::Tensor times(const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                   const std::optional<at::Tensor>& weight_scale) const {
    const std::int64_t in_features = weight.size(1), out_features = weight.size(0);
    std::vector<std::int64_t> sizes = input_.sizes().vec();
    sizes.back() = out_features;
    at::Tensor output = at::empty(sizes, input_.options());
    if (output.numel() == 0) return output;
    SkinnyLinear linear = {};
    linear.type = type_;
    linear.prepared_input =
        reinterpret_cast<const std::byte*>(prepared_.const_data_ptr<std::uint8_t>());
    linear.num_rows = num_rows_;
    linear.in_features = in_features;
    linear.weight = weight.const_data_ptr();
    linear.weight_stride = weight.stride(0);
    const at::Tensor bias_values = bias.has_value() ? bias->contiguous() : at::Tensor();
    linear.bias = bias.has_value() ? bias_values.const_data_ptr() : nullptr;
    const at::Tensor scales = is_int8_ ? weight_scale->contiguous() : at::Tensor();
    linear.weight_scale = is_int8_ ? scales.const_data_ptr<float>() : nullptr;
    linear.output = output.mutable_data_ptr();
    linear.out_features = out_features;

    const auto run = LIBVAR_CPU_BUILDS(skinny_linear_rows).chosen();
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / in_features);
    at::parallel_for(0, out_features, grain,
                     [&](std::int64_t begin, std::int64_t end) { run(linear, begin, end); });
    return output;
  }

 private:
  at::Tensor input_, prepared_;
  bool is_int8_;
  ElementType type_;
  std::int64_t num_rows_;
};

at::Tensor skinny_linear_cpu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& weight_scale) {
  checks::check_skinny_linear(input, weight, bias, weight_scale);
  return PreparedInput(input, weight_scale.has_value()).times(weight, bias, weight_scale);
}

// The maps one after the other: each is a stream of its own, and two small passes over what they
// give cost nothing beside reading the weights.
at::Tensor skinny_swiglu_cpu(const at::Tensor& input, const at::Tensor& gate_weight,
                             const at::Tensor& up_weight,
                             const std::optional<at::Tensor>& gate_bias,
                             const std::optional<at::Tensor>& up_bias,
                             const std::optional<at::Tensor>& gate_scale,
                             const std::optional<at::Tensor>& up_scale) {
  checks::check_skinny_swiglu(input, gate_weight, up_weight, gate_bias, up_bias, gate_scale,
                              up_scale);
  const PreparedInput prepared(input, gate_scale.has_value());
  at::Tensor gate = prepared.times(gate_weight, gate_bias, gate_scale);
  return at::silu_(gate).mul_(prepared.times(up_weight, up_bias, up_scale));
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("skinny_linear", &libvar::cpu::skinny_linear_cpu);
  m.impl("skinny_swiglu", &libvar::cpu::skinny_swiglu_cpu);
}
