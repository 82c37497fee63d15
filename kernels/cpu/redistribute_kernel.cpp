// redistribute on the CPU, one build per capability.
//
// Work split: one call does a range of rows of K probabilities, one after the other. Memory: a row
// comes from memory once, for its four class masses; the pass that scales it finds it in the cache
// and writes each element once. Both passes take the keys in order, in groups of 32: most groups
// lie in one class, and the branch on a group's class goes the same way in every row. Stores that
// bypass the cache were tried and left out: 5 to 10 % faster for 100 MB and more in AVX-512,
// nothing or slower otherwise, and the reader of the result would find none of it in the cache.

#include "cpu/redistribute_kernel.h"

#include "classes.h"
#include "cpu/group.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

// Groups whose masses are added up before they are added to the row's: keeps the rounding error
// small at any K.
constexpr std::int64_t kBlock = 64;

LIBVAR_INLINE void add_mixed(HalfGroup (&mass)[kNumTokenClasses], const HalfGroup& x,
                             const std::uint8_t* of_lane) {
  for (std::int64_t i = 0; i < kParts; ++i) {
    const Ints classes = load_bytes(of_lane + i * kLanes);
    for (int c = 0; c < kNumTokenClasses; ++c)
      mass[c].part[i] = add_where(classes, c, x.part[i], mass[c].part[i]);
  }
}

LIBVAR_INLINE void add_pure(HalfGroup& mass, const Group& x) {
  for (std::int64_t i = 0; i < kParts; ++i) mass.part[i] += x.first.part[i] + x.second.part[i];
}

// A switch, and not mass[of_group], so that all four masses stay in registers.
LIBVAR_INLINE void add_group(HalfGroup (&mass)[kNumTokenClasses], const Group& x,
                             std::uint8_t of_group, const std::uint8_t* of_lane) {
  switch (of_group) {
    case 0:
      return add_pure(mass[0], x);
    case 1:
      return add_pure(mass[1], x);
    case 2:
      return add_pure(mass[2], x);
    case 3:
      return add_pure(mass[3], x);
    default:
      add_mixed(mass, x.first, of_lane);
      add_mixed(mass, x.second, of_lane + kGroup / 2);
  }
}

template <typename T>
LIBVAR_INLINE void row_masses(float (&mass)[kNumTokenClasses], const T* row,
                              const GroupedKeys& keys, std::int64_t num_keys) {
  const std::int64_t num_groups = num_keys / kGroup;  // whole ones
  const std::int64_t rest = num_keys % kGroup;
  HalfGroup sums[kNumTokenClasses] = {};
  for (std::int64_t first = 0; first < num_groups; first += kBlock) {
    const std::int64_t end = first + kBlock < num_groups ? first + kBlock : num_groups;
    HalfGroup block[kNumTokenClasses] = {};
    for (std::int64_t g = first; g < end; ++g) {
      add_group(block, load_group(row + g * kGroup), keys.of_group[g], keys.of_lane + g * kGroup);
    }
    for (int c = 0; c < kNumTokenClasses; ++c) add(sums[c], block[c]);
  }
  if (rest != 0) {
    add_group(sums, load_partial_group(row + num_groups * kGroup, rest), keys.of_group[num_groups],
              keys.of_lane + num_groups * kGroup);
  }
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = sum_of(sums[c]);
}

LIBVAR_INLINE void scale_mixed(HalfGroup& x, const float (&weight)[kNumTokenClasses],
                               const std::uint8_t* of_lane) {
  for (std::int64_t i = 0; i < kParts; ++i)
    x.part[i] *= look_up(weight, load_bytes(of_lane + i * kLanes));
}

LIBVAR_INLINE Group scaled(Group x, const float (&weight)[kNumTokenClasses], std::uint8_t of_group,
                           const std::uint8_t* of_lane) {
  if (of_group == kMixedClasses) {
    scale_mixed(x.first, weight, of_lane);
    scale_mixed(x.second, weight, of_lane + kGroup / 2);
  } else {
    for (std::int64_t i = 0; i < kParts; ++i) {
      x.first.part[i] *= weight[of_group];
      x.second.part[i] *= weight[of_group];
    }
  }
  return x;
}

template <typename T>
LIBVAR_INLINE void write_scaled(T* out, const T* row, const GroupedKeys& keys,
                                const float (&weight)[kNumTokenClasses], std::int64_t num_keys) {
  const std::int64_t num_groups = num_keys / kGroup;
  const std::int64_t rest = num_keys % kGroup;
  for (std::int64_t g = 0; g < num_groups; ++g) {
    store_group(out + g * kGroup, scaled(load_group(row + g * kGroup), weight, keys.of_group[g],
                                         keys.of_lane + g * kGroup));
  }
  if (rest != 0) {
    const std::int64_t first = num_groups * kGroup;
    store_partial_group(out + first,
                        scaled(load_partial_group(row + first, rest), weight,
                               keys.of_group[num_groups], keys.of_lane + first),
                        rest);
  }
}

template <typename T>
LIBVAR_INLINE void run_row(const RedistributeCall& call, std::int64_t b, std::int64_t h,
                           std::int64_t q) {
  const GroupedKeys& keys = call.sequences[b];
  const T* row = static_cast<const T*>(call.probs) + b * call.probs_stride[0] +
                 h * call.probs_stride[1] + q * call.probs_stride[2];
  T* out = static_cast<T*>(call.out) + b * call.out_stride[0] + h * call.out_stride[1] +
           q * call.out_stride[2];
  const bool allowed = call.row_mask == nullptr ||
                       call.row_mask[b * call.row_mask_stride[0] + q * call.row_mask_stride[1]];
  ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
  if (allowed && keys.has_visual_sink && call.rule.head_rule != HeadRule::kNone) {
    float mass[kNumTokenClasses];
    row_masses(mass, row, keys, call.num_keys);
    weights = class_weights(mass, call.rule, keys.num_visual, true);
  }
  if (weights.selected) {
    write_scaled(out, row, keys, weights.weight, call.num_keys);
  } else if (out != row) {
    __builtin_memcpy(out, row, static_cast<std::size_t>(call.num_keys) * sizeof(T));
  }
}

template <typename T>
void run_rows(const RedistributeCall& call, std::int64_t begin, std::int64_t end) {
  std::int64_t b = begin / (call.num_heads * call.num_rows);
  std::int64_t h = begin / call.num_rows % call.num_heads;
  std::int64_t q = begin % call.num_rows;
  for (std::int64_t i = begin; i < end; ++i) {
    run_row<T>(call, b, h, q);
    if (++q < call.num_rows) continue;
    q = 0;
    if (++h < call.num_heads) continue;
    h = 0;
    ++b;
  }
}

using Classes = std::uint8_t __attribute__((vector_size(kGroup / 2)));

LIBVAR_INLINE bool any_of(Classes x) {
  std::uint64_t words[2];
  static_assert(sizeof(words) == sizeof(x));
  __builtin_memcpy(&words, &x, sizeof(x));
  return (words[0] | words[1]) != 0;
}

// Finds the group's class and puts the classes of its keys, which lie in order, into lane order.
LIBVAR_INLINE std::uint8_t finish_group(std::uint8_t* of_lane, ElementType type,
                                        bool* has_visual_sink) {
  Classes first, second;
  __builtin_memcpy(&first, of_lane, sizeof(first));
  __builtin_memcpy(&second, of_lane + kGroup / 2, sizeof(second));
  const bool mixed = any_of((first ^ first[0]) | (second ^ first[0]));
  constexpr auto kVisualSink = static_cast<std::uint8_t>(TokenClass::kVisualSink);
  *has_visual_sink |= any_of(reinterpret_cast<Classes>(first == kVisualSink) |
                             reinterpret_cast<Classes>(second == kVisualSink));
  if (mixed && type == ElementType::kBfloat16) {
    const Classes even_keys = __builtin_shufflevector(first, second, 0, 2, 4, 6, 8, 10, 12, 14, 16,
                                                      18, 20, 22, 24, 26, 28, 30);
    const Classes odd_keys = __builtin_shufflevector(first, second, 1, 3, 5, 7, 9, 11, 13, 15, 17,
                                                     19, 21, 23, 25, 27, 29, 31);
    __builtin_memcpy(of_lane, &even_keys, sizeof(even_keys));
    __builtin_memcpy(of_lane + kGroup / 2, &odd_keys, sizeof(odd_keys));
  }
  return mixed ? kMixedClasses : first[0];
}

}  // namespace

GroupedKeys group_keys(const float* __restrict scores, const std::uint8_t* __restrict visual,
                       std::int64_t num_keys, float tau, ElementType type,
                       std::uint8_t* __restrict of_group, std::uint8_t* __restrict of_lane) {
  std::int32_t num_visual = 0;
  for (std::int64_t j = 0; j < num_keys; ++j) {
    of_lane[j] = static_cast<std::uint8_t>(token_class(scores[j], visual[j] != 0, tau));
  }
  for (std::int64_t j = 0; j < num_keys; ++j) num_visual += visual[j] != 0 ? 1 : 0;
  bool has_visual_sink = false;
  for (std::int64_t first = 0; first < num_keys; first += kGroup) {
    for (std::int64_t j = num_keys; j < first + kGroup; ++j) of_lane[j] = of_lane[num_keys - 1];
    of_group[first / kGroup] = finish_group(of_lane + first, type, &has_visual_sink);
  }
  return {of_group, of_lane, static_cast<float>(num_visual), has_visual_sink};
}

void redistribute_rows(const RedistributeCall& call, std::int64_t begin, std::int64_t end) {
  switch (call.type) {
    case ElementType::kFloat:
      return run_rows<float>(call, begin, end);
    case ElementType::kHalf:
      return run_rows<Half>(call, begin, end);
    case ElementType::kBfloat16:
      return run_rows<Bfloat16>(call, begin, end);
  }
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
