// sink_scores, rms_norm_sink_scores, add_rms_norm_sink_scores on the CPU.
//
// Work split: one thread owns a row of D elements. Memory: a row is converted to float once into a
// buffer of the thread, and everything else reads that buffer.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "cpu/lanes.h"

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

// Added up in double: one row in float differs from PyTorch's by the order of the additions
// otherwise.
double sum_of_squares(const float* x, std::int64_t count) {
  constexpr std::int64_t kSums = 8;
  double sums[kSums] = {};
  std::int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (std::int64_t k = 0; k < kSums; ++k) sums[k] += static_cast<double>(x[i + k]) * x[i + k];
  }
  for (; i < count; ++i) sums[i % kSums] += static_cast<double>(x[i]) * x[i];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

float inverse_rms(const float* x, std::int64_t hidden_size, float eps) {
  const auto mean =
      static_cast<float>(sum_of_squares(x, hidden_size) / static_cast<double>(hidden_size));
  return 1.0f / std::sqrt(mean + eps);
}

float sink_score(const float* x, const std::int64_t* sink_dims, std::int64_t num_sink_dims,
                 float inverse) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < num_sink_dims; ++i)
    largest = std::max(largest, std::fabs(x[sink_dims[i]]));
  return num_sink_dims == 0 ? 0.0f : largest * inverse;
}

// Null pointers: no residual to add to, no norm to write.
template <typename T>
struct NormArguments {
  const T* hidden = nullptr;  // read where delta is null
  T* residual = nullptr;      // read and written where delta is given
  const T* delta = nullptr;
  const T* weight = nullptr;  // null: phi only
  T* normed = nullptr;
  float* scores = nullptr;
  const std::int64_t* sink_dims = nullptr;
  std::int64_t num_sink_dims = 0;
  std::int64_t num_rows = 0;
  std::int64_t hidden_size = 0;
  float eps = 0.0f;
};

// transformers' rounding: x * rsqrt(...) is rounded to the dtype before the weight multiplies it.
template <typename T>
void write_normed(T* normed, const float* x, const T* weight, float inverse,
                  std::int64_t hidden_size) {
  for (std::int64_t d = 0; d < hidden_size; ++d) {
    const T rounded = static_cast<T>(x[d] * inverse);
    normed[d] = static_cast<T>(static_cast<float>(weight[d]) * static_cast<float>(rounded));
  }
}

template <typename T>
void run_rows(const NormArguments<T>& a, const Rows& hidden_rows, const Rows& delta_rows) {
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / a.hidden_size);
  at::parallel_for(0, a.num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> x(static_cast<std::size_t>(a.hidden_size));
    for (std::int64_t row = begin; row < end; ++row) {
      const std::int64_t offset = hidden_rows.offset(row);
      if (a.delta == nullptr) {
        load_floats(x.data(), a.hidden + offset, a.hidden_size);
      } else {
        T* residual = a.residual + offset;
        const T* delta = a.delta + delta_rows.offset(row);
        for (std::int64_t d = 0; d < a.hidden_size; ++d) {
          residual[d] =
              static_cast<T>(static_cast<float>(residual[d]) + static_cast<float>(delta[d]));
        }
        load_floats(x.data(), residual, a.hidden_size);
      }
      const float inverse = inverse_rms(x.data(), a.hidden_size, a.eps);
      a.scores[row] = sink_score(x.data(), a.sink_dims, a.num_sink_dims, inverse);
      if (a.weight != nullptr) {
        write_normed(a.normed + row * a.hidden_size, x.data(), a.weight, inverse, a.hidden_size);
      }
    }
  });
}

at::Tensor empty_scores(const at::Tensor& hidden) {
  return at::empty(hidden.sizes().slice(0, hidden.dim() - 1), hidden.options().dtype(at::kFloat));
}

at::Tensor sink_scores_cpu(const at::Tensor& hidden, const at::Tensor& sink_dims, double eps) {
  checks::check_sink_scores(hidden, sink_dims, eps);
  const std::int64_t hidden_size = hidden.size(-1);
  checks::check_sink_dim_values("sink_scores", sink_dims, hidden_size);
  const at::Tensor dims = sink_dims.contiguous();
  at::Tensor scores = empty_scores(hidden);
  dispatch_floating(hidden.scalar_type(), [&](auto element) {
    using T = decltype(element);
    NormArguments<T> arguments;
    arguments.hidden = hidden.const_data_ptr<T>();
    arguments.scores = scores.mutable_data_ptr<float>();
    arguments.sink_dims = dims.const_data_ptr<std::int64_t>();
    arguments.num_sink_dims = dims.numel();
    arguments.num_rows = scores.numel();
    arguments.hidden_size = hidden_size;
    arguments.eps = static_cast<float>(eps);
    run_rows(arguments, Rows(hidden), Rows(hidden));
  });
  return scores;
}

// With delta: hidden is the residual, and changed.
std::tuple<at::Tensor, at::Tensor> rms_norm_rows(const at::Tensor& hidden, const at::Tensor* delta,
                                                 const at::Tensor& weight,
                                                 const at::Tensor& sink_dims, double eps) {
  const at::Tensor dims = sink_dims.contiguous();
  at::Tensor normed = at::empty(hidden.sizes(), hidden.options());
  at::Tensor scores = empty_scores(hidden);
  dispatch_floating(hidden.scalar_type(), [&](auto element) {
    using T = decltype(element);
    NormArguments<T> arguments;
    if (delta == nullptr) {
      arguments.hidden = hidden.const_data_ptr<T>();
    } else {
      arguments.residual = hidden.mutable_data_ptr<T>();
      arguments.delta = delta->const_data_ptr<T>();
    }
    arguments.weight = weight.const_data_ptr<T>();
    arguments.normed = normed.mutable_data_ptr<T>();
    arguments.scores = scores.mutable_data_ptr<float>();
    arguments.sink_dims = dims.const_data_ptr<std::int64_t>();
    arguments.num_sink_dims = dims.numel();
    arguments.num_rows = scores.numel();
    arguments.hidden_size = hidden.size(-1);
    arguments.eps = static_cast<float>(eps);
    run_rows(arguments, Rows(hidden), Rows(delta == nullptr ? hidden : *delta));
  });
  return {normed, scores};
}

std::tuple<at::Tensor, at::Tensor> rms_norm_sink_scores_cpu(const at::Tensor& hidden,
                                                            const at::Tensor& weight,
                                                            const at::Tensor& sink_dims,
                                                            double eps) {
  checks::check_rms_norm("rms_norm_sink_scores", "hidden", hidden, nullptr, weight, sink_dims, eps);
  checks::check_sink_dim_values("rms_norm_sink_scores", sink_dims, hidden.size(-1));
  return rms_norm_rows(hidden, nullptr, weight, sink_dims, eps);
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
  return rms_norm_rows(residual, &delta, weight, sink_dims, eps);
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("sink_scores", &libvar::cpu::sink_scores_cpu);
  m.impl("rms_norm_sink_scores", &libvar::cpu::rms_norm_sink_scores_cpu);
  m.impl("add_rms_norm_sink_scores", &libvar::cpu::add_rms_norm_sink_scores_cpu);
}
