// skinny_linear on the CPU: checks, preparation of the input, threads. The computation is in
// skinny_linear_kernel.cpp.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/element_type.h"
#include "cpu/skinny_linear_kernel.h"

namespace libvar::cpu {
namespace {

// Weight elements below which a second thread costs more than it gives.
constexpr std::int64_t kGrainElements = std::int64_t{1} << 17;

at::Tensor prepared(const at::Tensor& rows, ElementType type, bool is_quantized) {
  const std::int64_t in_features = rows.size(1);
  const std::int64_t row_bytes = prepared_row_bytes(in_features);
  at::Tensor result = at::empty({rows.size(0) * row_bytes}, at::TensorOptions().dtype(at::kByte));
  auto* target = reinterpret_cast<std::byte*>(result.mutable_data_ptr<std::uint8_t>());
  const auto* source = static_cast<const std::byte*>(rows.const_data_ptr());
  const auto source_bytes = in_features * static_cast<std::int64_t>(rows.element_size());
  const auto prepare = LIBVAR_CPU_BUILDS(prepare_input).chosen();
  for (std::int64_t m = 0; m < rows.size(0); ++m)
    prepare(type, is_quantized, source + m * source_bytes, in_features, target + m * row_bytes);
  return result;
}

at::Tensor skinny_linear_cpu(const at::Tensor& input, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias,
                             const std::optional<at::Tensor>& weight_scale) {
  checks::check_skinny_linear(input, weight, bias, weight_scale);
  const std::int64_t in_features = weight.size(1), out_features = weight.size(0);
  std::vector<std::int64_t> sizes = input.sizes().vec();
  sizes.back() = out_features;
  at::Tensor output = at::empty(sizes, input.options());
  if (output.numel() == 0) return output;

  const at::Tensor rows = input.reshape({-1, in_features}).contiguous();
  SkinnyLinear linear = {};
  linear.type = element_type(input.scalar_type());
  const at::Tensor prepared_rows = prepared(rows, linear.type, weight_scale.has_value());
  linear.prepared_input =
      reinterpret_cast<const std::byte*>(prepared_rows.const_data_ptr<std::uint8_t>());
  linear.num_rows = rows.size(0);
  linear.in_features = in_features;
  linear.weight = weight.const_data_ptr();
  linear.weight_stride = weight.stride(0);
  const at::Tensor bias_values = bias.has_value() ? bias->contiguous() : at::Tensor();
  linear.bias = bias.has_value() ? bias_values.const_data_ptr() : nullptr;
  const at::Tensor scales = weight_scale.has_value() ? weight_scale->contiguous() : at::Tensor();
  linear.weight_scale = weight_scale.has_value() ? scales.const_data_ptr<float>() : nullptr;
  linear.output = output.mutable_data_ptr();
  linear.out_features = out_features;

  const auto run = LIBVAR_CPU_BUILDS(skinny_linear_rows).chosen();
  const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / in_features);
  at::parallel_for(0, out_features, grain,
                   [&](std::int64_t begin, std::int64_t end) { run(linear, begin, end); });
  return output;
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("skinny_linear", &libvar::cpu::skinny_linear_cpu);
}
