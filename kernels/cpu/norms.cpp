// sink_scores, rms_norm_sink_scores and add_rms_norm_sink_scores on the CPU: checks, addresses of
// the rows, threads. The computation is in norms_kernel.cpp.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "checks.h"
#include "cpu/element_type.h"
#include "cpu/norms_kernel.h"

namespace libvar::cpu {
namespace {

// Rows of a tensor [..., D] with any leading strides.
class Rows {
 public:
  explicit Rows(const at::Tensor& tensor)
      : sizes_(tensor.sizes().slice(0, tensor.dim() - 1)),
        strides_(tensor.strides().slice(0, tensor.dim() - 1)) {}

  std::int64_t offset(std::int64_t row) const {
    std::int64_t offset = 0;
    for (std::size_t i = sizes_.size(); i-- > 0;) {
      offset += row % sizes_[i] * strides_[i];
      row /= sizes_[i];
    }
    return offset;
  }

 private:
  at::IntArrayRef sizes_;
  at::IntArrayRef strides_;
};

at::Tensor empty_scores(const at::Tensor& hidden) {
  return at::empty(hidden.sizes().slice(0, hidden.dim() - 1), hidden.options().dtype(at::kFloat));
}

const std::byte* bytes_of(const at::Tensor& tensor) {
  return static_cast<const std::byte*>(tensor.const_data_ptr());
}

std::byte* mutable_bytes_of(const at::Tensor& tensor) {
  return static_cast<std::byte*>(tensor.mutable_data_ptr());
}

// Null tensors: no residual to add to (with delta, `hidden` is the residual, and changed), no norm
// to write.
struct NormTensors {
  const at::Tensor& hidden;
  const at::Tensor* delta;
  const at::Tensor* weight;
  const at::Tensor* normed;
  const at::Tensor& scores;
};

void run(const NormTensors& t, const at::Tensor& sink_dims, double eps) {
  if (t.scores.numel() == 0) return;
  const at::Tensor dims = sink_dims.contiguous();
  const Rows hidden_rows(t.hidden), delta_rows(t.delta == nullptr ? t.hidden : *t.delta);
  NormRow first = {};  // what all rows share, and the addresses of their first one
  first.type = element_type(t.hidden.scalar_type());
  first.sink_dims = dims.const_data_ptr<std::int64_t>();
  first.num_sink_dims = dims.numel();
  first.hidden_size = t.hidden.size(-1);
  first.eps = static_cast<float>(eps);
  first.weight = t.weight == nullptr ? nullptr : t.weight->const_data_ptr();
  const std::byte* hidden = t.delta == nullptr ? bytes_of(t.hidden) : nullptr;
  std::byte* residual = t.delta == nullptr ? nullptr : mutable_bytes_of(t.hidden);
  const std::byte* delta = t.delta == nullptr ? nullptr : bytes_of(*t.delta);
  std::byte* normed = t.normed == nullptr ? nullptr : mutable_bytes_of(*t.normed);
  float* scores = t.scores.mutable_data_ptr<float>();
  const auto element_size = static_cast<std::int64_t>(t.hidden.element_size());

  const auto norm = LIBVAR_CPU_BUILDS(norm_row).chosen();
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / first.hidden_size);
  at::parallel_for(0, t.scores.numel(), grain, [&](std::int64_t begin, std::int64_t end) {
    NormRow row = first;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t offset = hidden_rows.offset(i) * element_size;
      if (hidden != nullptr) row.hidden = hidden + offset;
      if (residual != nullptr) row.residual = residual + offset;
      if (delta != nullptr) row.delta = delta + delta_rows.offset(i) * element_size;
      if (normed != nullptr) row.normed = normed + i * first.hidden_size * element_size;
      row.score = scores + i;
      norm(row);
    }
  });
}

at::Tensor sink_scores_cpu(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  checks::check_sink_scores(hidden, sink_dims, eps);
  checks::check_sink_dim_values("sink_scores", sink_dims, hidden.size(-1));
  at::Tensor scores = empty_scores(hidden);
  run({hidden, nullptr, nullptr, nullptr, scores}, sink_dims, eps);
  return scores;
}

std::tuple<at::Tensor, at::Tensor> rms_norm(const at::Tensor& hidden, const at::Tensor* delta,
                                            const at::Tensor& weight, const at::Tensor& sink_dims,
                                            double eps) {
  at::Tensor normed = at::empty(hidden.sizes(), hidden.options());
  at::Tensor scores = empty_scores(hidden);
  run({hidden, delta, &weight, &normed, scores}, sink_dims, eps);
  return {normed, scores};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores_cpu(const at::Tensor& hidden,
                                                            const at::Tensor& weight,
                                                            const at::Tensor& sink_dims,
                                                            double eps) {
  checks::check_rms_norm("rms_norm_sink_scores", "hidden", hidden, nullptr, weight, sink_dims, eps);
  checks::check_sink_dim_values("rms_norm_sink_scores", sink_dims, hidden.size(-1));
  return rms_norm(hidden, nullptr, weight, sink_dims, eps);
}

std::tuple<at::Tensor, at::Tensor> add_rms_norm_sink_scores_cpu(at::Tensor& residual,
                                                                const at::Tensor& delta,
                                                                const at::Tensor& weight,
                                                                const at::Tensor& sink_dims,
                                                                double eps) {
  checks::check_rms_norm("add_rms_norm_sink_scores", "residual", residual, &delta, weight,
                         sink_dims, eps);
  checks::check_sink_dim_values("add_rms_norm_sink_scores", sink_dims, residual.size(-1));
  at::assert_no_internal_overlap(residual);
  return rms_norm(residual, &delta, weight, sink_dims, eps);
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("sink_scores", &libvar::cpu::sink_scores_cpu);
  m.impl("rms_norm_sink_scores", &libvar::cpu::rms_norm_sink_scores_cpu);
  m.impl("add_rms_norm_sink_scores", &libvar::cpu::add_rms_norm_sink_scores_cpu);
}
