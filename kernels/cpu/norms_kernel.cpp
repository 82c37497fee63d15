// sink_scores, rms_norm_sink_scores and add_rms_norm_sink_scores on the CPU, one build per
// capability.
//
// Work split: one call does one row of D elements. Memory: the row comes from memory once, for its
// sum of squares (and once more from the cache for the norm, which is written once); phi reads its
// few elements from the cache.

#include "cpu/norms_kernel.h"

#include "cpu/group.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

// Groups whose squares are added up before they are added to the row's: keeps the rounding error
// small at any D.
constexpr std::int64_t kBlock = 64;

LIBVAR_INLINE float to_float(float x) {
  return x;
}

template <typename T>
LIBVAR_INLINE float to_float(T x) {
  return widen(T(), Halves{} + x.bits)[0];
}

LIBVAR_INLINE void add_squares(Group& sum, const Group& x) {
  for (std::int64_t i = 0; i < kParts; ++i) {
    sum.first.part[i] += x.first.part[i] * x.first.part[i];
    sum.second.part[i] += x.second.part[i] * x.second.part[i];
  }
}

// x + y as T holds it.
template <typename T>
LIBVAR_INLINE Group rounded_sum(const Group& x, const Group& y) {
  Group sum;
  for (std::int64_t i = 0; i < kParts; ++i) {
    sum.first.part[i] = rounded_to(T(), x.first.part[i] + y.first.part[i]);
    sum.second.part[i] = rounded_to(T(), x.second.part[i] + y.second.part[i]);
  }
  return sum;
}

// The row's elements [first, first + kGroup), after adding delta where there is one.
template <typename T, bool with_delta>
LIBVAR_INLINE Group take_group(const NormRow& row, std::int64_t first) {
  if constexpr (!with_delta) {
    return load_group(static_cast<const T*>(row.hidden) + first);
  } else {
    T* residual = static_cast<T*>(row.residual) + first;
    const Group sum = rounded_sum<T>(load_group(static_cast<const T*>(residual)),
                                     load_group(static_cast<const T*>(row.delta) + first));
    store_group(residual, sum);
    return sum;
  }
}

// The same for the last, partial group.
template <typename T, bool with_delta>
LIBVAR_INLINE Group take_partial_group(const NormRow& row, std::int64_t first) {
  const std::int64_t count = row.hidden_size - first;
  if constexpr (!with_delta) {
    return load_partial_group(static_cast<const T*>(row.hidden) + first, count);
  } else {
    T* residual = static_cast<T*>(row.residual) + first;
    const Group sum =
        rounded_sum<T>(load_partial_group(static_cast<const T*>(residual), count),
                       load_partial_group(static_cast<const T*>(row.delta) + first, count));
    store_partial_group(residual, sum, count);
    return sum;
  }
}

template <typename T, bool with_delta>
LIBVAR_INLINE float sum_of_squares(const NormRow& row) {
  const std::int64_t num_groups = row.hidden_size / kGroup;  // whole ones
  Group sum = {};
  for (std::int64_t first = 0; first < num_groups; first += kBlock) {
    const std::int64_t end = first + kBlock < num_groups ? first + kBlock : num_groups;
    Group block = {};
    for (std::int64_t g = first; g < end; ++g)
      add_squares(block, take_group<T, with_delta>(row, g * kGroup));
    add(sum.first, block.first);
    add(sum.second, block.second);
  }
  if (num_groups * kGroup < row.hidden_size)
    add_squares(sum, take_partial_group<T, with_delta>(row, num_groups * kGroup));
  add(sum.first, sum.second);
  return sum_of(sum.first);
}

template <typename T>
LIBVAR_INLINE float sink_score(const NormRow& row, const T* x, float inverse) {
  float largest = 0.0f;
  for (std::int64_t i = 0; i < row.num_sink_dims; ++i) {
    const float magnitude = __builtin_fabsf(to_float(x[row.sink_dims[i]]));
    largest = magnitude > largest ? magnitude : largest;
  }
  return row.num_sink_dims == 0 ? 0.0f : largest * inverse;
}

// transformers' rounding: x / rms is rounded to the dtype before the weight multiplies it.
template <typename T>
LIBVAR_INLINE Group normed_group(const Group& x, const Group& weight, float inverse) {
  Group result;
  for (std::int64_t i = 0; i < kParts; ++i) {
    result.first.part[i] = weight.first.part[i] * rounded_to(T(), x.first.part[i] * inverse);
    result.second.part[i] = weight.second.part[i] * rounded_to(T(), x.second.part[i] * inverse);
  }
  return result;
}

template <typename T>
LIBVAR_INLINE void write_normed(const NormRow& row, const T* x, float inverse) {
  const T* weight = static_cast<const T*>(row.weight);
  T* normed = static_cast<T*>(row.normed);
  const std::int64_t whole = row.hidden_size / kGroup * kGroup;
  const std::int64_t rest = row.hidden_size - whole;
  for (std::int64_t d = 0; d < whole; d += kGroup) {
    store_group(normed + d, normed_group<T>(load_group(x + d), load_group(weight + d), inverse));
  }
  if (rest != 0) {
    const Group result = normed_group<T>(load_partial_group(x + whole, rest),
                                         load_partial_group(weight + whole, rest), inverse);
    store_partial_group(normed + whole, result, rest);
  }
}

template <typename T>
void run_row(const NormRow& row) {
  const bool with_delta = row.hidden == nullptr;
  const float squares = with_delta ? sum_of_squares<T, true>(row) : sum_of_squares<T, false>(row);
  const float mean = squares / static_cast<float>(row.hidden_size);
  const float inverse = 1.0f / __builtin_sqrtf(mean + row.eps);
  const T* x = static_cast<const T*>(with_delta ? row.residual : row.hidden);
  *row.score = sink_score(row, x, inverse);
  if (row.weight != nullptr) write_normed(row, x, inverse);
}

}  // namespace

void norm_row(const NormRow& row) {
  switch (row.type) {
    case ElementType::kFloat:
      return run_row<float>(row);
    case ElementType::kHalf:
      return run_row<Half>(row);
    case ElementType::kBfloat16:
      return run_row<Bfloat16>(row);
  }
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
