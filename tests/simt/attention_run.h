#pragma once

// Runs the attention kernels on a problem and compares with the double-precision oracle.

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "attention_problem.h"
#include "cuda/attention_combine.cuh"
#include "cuda/attention_decode.cuh"
#include "cuda/attention_general.cuh"
#include "cuda/attention_group.cuh"
#include "cuda/attention_launch.cuh"
#include "cuda/attention_rows.cuh"
#include "element_types.h"
#include "lane_orders.h"
#include "libvar/numerics.h"
#include "reference/attention_oracle.h"

namespace cuda = libvar::cuda;
namespace reference = libvar::reference;
using libvar::kNumTokenClasses;

template <typename T>
struct KernelResult {
  std::vector<T> out;
  std::vector<std::uint8_t> selected;
  std::vector<float> class_mass;
};

/// Memory of a [batch, head, row, head_dim] tensor, laid out as (batch, row, head, head_dim) with
/// `padding` elements after each row when `transposed`, else contiguous.
template <typename T>
struct Layout {
  std::vector<T> memory;
  cuda::RowStrides strides;

  Layout(const std::vector<double>& values, int batch, int heads, int rows, int head_dim,
         bool transposed, int padding) {
    const int row_elements = transposed ? head_dim + padding : head_dim;
    strides.head = transposed ? row_elements : std::int64_t{rows} * head_dim;
    strides.row = transposed ? std::int64_t{heads} * row_elements : head_dim;
    strides.batch = std::int64_t{heads} * rows * row_elements;
    memory = unwritten<T>(static_cast<std::size_t>(strides.batch) * batch);
    std::size_t index = 0;
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < rows; ++i) {
          for (int d = 0; d < head_dim; ++d) {
            memory[static_cast<std::size_t>(strides.offset(b, h, i) + d)] =
                to_element<T>(values[index++]);
          }
        }
      }
    }
  }
};

/// How a problem is given to the kernels.
struct How {
  bool transposed = false;
  bool traced = true;
  const std::vector<int>* raw_lengths = nullptr;  ///< in place of the problem's own
  std::optional<cuda::AttentionKernel> kernel =
      std::nullopt;  ///< none: the one that is chosen by itself
  std::size_t scratch_bytes = std::size_t{1} << 20;
  std::int64_t most_blocks = cuda::kMostBlocks;
  bool with_classes = true;
  int padding = 8;  ///< elements after a row where transposed
};

template <typename T>
KernelResult<T> run_kernel(const reference::AttentionProblem& in, const How& how = {}) {
  const Layout<T> query(in.query, in.batch, in.num_heads, in.num_rows, in.head_dim, how.transposed,
                        how.padding);
  const Layout<T> key(in.key, in.batch, in.num_kv_heads, in.num_keys, in.head_dim, how.transposed,
                      how.padding);
  const Layout<T> value(in.value, in.batch, in.num_kv_heads, in.num_keys, in.head_dim,
                        how.transposed, how.padding);
  const std::size_t num_results = static_cast<std::size_t>(in.batch) * in.num_heads * in.num_rows;
  KernelResult<T> result;
  result.out = unwritten<T>(num_results * in.head_dim);
  result.selected.assign(num_results, 7);
  result.class_mass.assign(num_results * kNumTokenClasses, NAN);
  cuda::AttentionArguments<T> args = {};
  args.query = query.memory.data();
  args.key = key.memory.data();
  args.value = value.memory.data();
  args.sink_scores = in.sink_scores.data();
  args.visual_mask = reinterpret_cast<const bool*>(in.visual_mask.data());
  args.row_mask = in.row_mask ? reinterpret_cast<const bool*>(in.row_mask->data()) : nullptr;
  args.kv_lengths = how.raw_lengths ? how.raw_lengths->data()
                    : in.kv_lengths ? in.kv_lengths->data()
                                    : nullptr;
  args.params = in.params ? in.params->data() : nullptr;
  args.out = result.out.data();
  args.selected = how.traced ? reinterpret_cast<bool*>(result.selected.data()) : nullptr;
  args.class_mass = how.traced ? result.class_mass.data() : nullptr;
  args.query_stride = query.strides;
  args.key_stride = key.strides;
  args.value_stride = value.strides;
  args.sink_scores_stride = {in.num_keys, 1};
  args.visual_mask_stride = {in.num_keys, 1};
  args.row_mask_stride = {in.num_rows, 1};
  args.batch = in.batch;
  args.num_heads = in.num_heads;
  args.num_kv_heads = in.num_kv_heads;
  args.num_rows = in.num_rows;
  args.num_keys = in.num_keys;
  args.head_dim = in.head_dim;
  args.scale = static_cast<float>(in.scale);
  args.rule = in.rule;
  const auto kernel = how.kernel.value_or(cuda::choose_attention_kernel(args));
  auto pieces = cuda::cut_attention(args, kernel, how.with_classes, how.scratch_bytes);
  pieces.most_blocks = how.most_blocks;
  // Poison: a partial state that nobody wrote is NaN.
  std::vector<cuda::Float4> scratch(pieces.bytes / sizeof(cuda::Float4), {{NAN, NAN, NAN, NAN}});
  REQUIRE(cuda::launch_attention(args, kernel, pieces, scratch.data(), how.with_classes, nullptr) ==
          cudaSuccess);
  return result;
}

template <typename T>
reference::AttentionProblem rounded_to(reference::AttentionProblem in) {
  round_to<T>(in.query);
  round_to<T>(in.key);
  round_to<T>(in.value);
  in.scale = static_cast<float>(in.scale);
  return in;
}

struct Tally {
  std::size_t rows = 0;
  std::size_t selected = 0;
  std::size_t flips = 0;
};

/// Whether the kernel rounds the softmax weights to the dtype, as every kernel on tensor cores
/// does.
template <typename T>
bool rounds_weights(const reference::AttentionProblem& in,
                    std::optional<cuda::AttentionKernel> kernel) {
  if (kernel)
    return *kernel == cuda::AttentionKernel::kGroup || *kernel == cuda::AttentionKernel::kRows;
  const int packed = in.num_rows * (in.num_heads / in.num_kv_heads);
  const int d = in.head_dim;
  return sizeof(T) == 2 && packed > 2 && (d == 64 || d == 80 || d == 96 || d == 128);
}

/// Compares with the oracle under the kernel's own selection; the selections may differ only where
/// the oracle's margin is within rounding.
template <typename T>
void compare(const reference::AttentionProblem& in, const KernelResult<T>& got, Tally& tally,
             std::optional<cuda::AttentionKernel> kernel = std::nullopt) {
  const auto own = reference::attention(in);
  const auto given = reference::attention(in, &got.selected);
  double largest = 0.0;
  for (int b = 0; b < in.batch; ++b) {
    for (int h = 0; h < in.num_kv_heads; ++h) {
      for (int j = 0; j < (in.kv_lengths ? (*in.kv_lengths)[b] : in.num_keys); ++j) {
        for (int d = 0; d < in.head_dim; ++d) {
          const auto at = ((static_cast<std::size_t>(b) * in.num_kv_heads + h) * in.num_keys + j) *
                              in.head_dim +
                          d;
          largest = std::fmax(largest, std::fabs(in.value[at]));
        }
      }
    }
  }
  const double bound =
      libvar::kAttentionBound + (rounds_weights<T>(in, kernel) ? ElementType<T>::kUlp / 2.0 : 0.0);
  std::size_t wrong = 0;
  double worst = 0.0;
  for (std::size_t i = 0; i < got.out.size(); ++i) {
    const double error = std::fabs(to_double(got.out[i]) - given.out[i]);
    const double floor = std::is_same_v<T, float> ? 0.0 : rounding_of<T>(given.out[i]);
    if (!(error <= floor + bound * largest)) ++wrong;
    worst = std::fmax(worst, error);
  }
  INFO("largest error " << worst << ", largest value " << largest);
  CHECK(wrong == 0);
  std::size_t wrong_masses = 0;
  for (std::size_t i = 0; i < got.class_mass.size(); ++i) {
    if (!(std::fabs(got.class_mass[i] - given.class_mass[i]) <= 1e-5)) ++wrong_masses;
  }
  CHECK(wrong_masses == 0);
  for (std::size_t i = 0; i < got.selected.size(); ++i) {
    REQUIRE(got.selected[i] <= 1);
    ++tally.rows;
    tally.selected += got.selected[i];
    if (got.selected[i] == own.selected[i]) continue;
    ++tally.flips;
    CHECK(own.margin[i] < 1e-5);
  }
}
