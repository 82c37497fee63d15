#pragma once

// The softmax of attention_kernel.cpp: scores of rows become exponentials in place, summed as a
// whole or by class.

#include "cpu/attention_kernel.h"
#include "cpu/vector.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {

LIBVAR_INLINE float largest_score(const float* scores, std::int64_t num_blocks) {
  Floats largest = broadcast(-kInfinity);
  for (std::int64_t j = 0; j < num_blocks * kKeyBlock; j += kLanes) {
    largest = larger(load(scores + j), largest);
  }
  return largest_of(largest);
}

// Scores of a block become exp(score - base); returns them added up.
LIBVAR_INLINE Floats exponentiate_block(float* scores, float base) {
  Floats sum = {};
  for (std::int64_t j = 0; j < kKeyBlock; j += kLanes) {
    const Floats x = exp_of_non_positive(load(scores + j) - base);
    store(scores + j, x);
    sum += x;
  }
  return sum;
}

// Calls f with the first key of every block of [0, num_blocks) that is not of one class as far as
// the row sees it: the mixed ones among the full blocks, and the last one where the row sees only a
// part of it. (Whether that one is mixed depends on keys that the row does not see.)
template <typename F>
LIBVAR_INLINE void for_mixed_blocks(const KeyClasses& keys, std::int64_t num_full,
                                    std::int64_t num_blocks, F&& f) {
  const std::int32_t* block = keys.blocks + keys.class_begin[kMixedBlock];
  const std::int32_t* const end = keys.blocks + keys.class_begin[kMixedBlock + 1];
  for (; block < end && *block < num_full; ++block) f(*block * kKeyBlock);
  if (num_full < num_blocks) f(num_full * kKeyBlock);
}

// Scores of `rows` rows become exp(score - base); totals of each.
template <int rows>
LIBVAR_INLINE void exponentiate(float (&total)[rows], float* scores, std::int64_t stride,
                                const float (&base)[rows], std::int64_t num_blocks) {
  Floats sums[rows] = {};
  for (std::int64_t i = 0; i < num_blocks; ++i) {
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      sums[r] += exponentiate_block(scores + r * stride + i * kKeyBlock, base[r]);
    }
  }
  for (int r = 0; r < rows; ++r) total[r] = sum_of(sums[r]);
}

// As above, with the mass of each class: class by class, so that its sums stay in registers, and
// several rows at once, so that the lists and the classes of mixed blocks are read once for them.
template <int rows>
LIBVAR_INLINE void exponentiate_classes(float (&mass)[rows][kNumTokenClasses], float* scores,
                                        std::int64_t stride, const float (&base)[rows],
                                        const KeyClasses& keys, std::int64_t num_full,
                                        std::int64_t num_blocks) {
  Floats sums[rows][kNumTokenClasses];
#pragma GCC unroll 4
  for (int c = 0; c < kNumTokenClasses; ++c) {
    const std::int32_t* block = keys.blocks + keys.class_begin[c];
    const std::int32_t* const end = keys.blocks + keys.class_begin[c + 1];
    Floats sum[rows] = {};
    for (; block < end && *block < num_full; ++block) {
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        sum[r] += exponentiate_block(scores + r * stride + *block * kKeyBlock, base[r]);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) sums[r][c] = sum[r];
  }
  for_mixed_blocks(keys, num_full, num_blocks, [&](std::int64_t first) {
    for (std::int64_t j = first; j < first + kKeyBlock; j += kLanes) {
      const Ints classes = load_bytes(keys.classes + j);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        const Floats x = exp_of_non_positive(load(scores + r * stride + j) - base[r]);
        store(scores + r * stride + j, x);
#pragma GCC unroll 4
        for (int c = 0; c < kNumTokenClasses; ++c) {
          sums[r][c] = add_where(classes, c, x, sums[r][c]);
        }
      }
    }
  });
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
    store_sums_of(mass[r], sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
}

// Multiplies the probabilities of mixed blocks by the weights of their classes.
LIBVAR_INLINE void weigh_mixed_blocks(float* probabilities, const KeyClasses& keys,
                                      std::int64_t num_full, std::int64_t num_blocks,
                                      const float weight[kNumTokenClasses]) {
  for_mixed_blocks(keys, num_full, num_blocks, [&](std::int64_t first) {
    for (std::int64_t j = first; j < first + kKeyBlock; j += kLanes) {
      const Floats factor = look_up(weight, load_bytes(keys.classes + j));
      store(probabilities + j, load(probabilities + j) * factor);
    }
  });
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
