// rotate_and_cache on the CPU, one build per capability.
//
// Work split: one call turns one head of one token. Memory: everything is read and written once.

#include "cpu/rotary_kernel.h"

#include "cpu/group.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

// transformers' rounding: each product is rounded to the dtype before they are added.
template <typename T>
LIBVAR_INLINE Floats turned(Floats x, Floats cos, Floats y, Floats sin) {
  return rounded_to(T(), x * cos) + rounded_to(T(), y * sin);
}

template <typename T>
void run_row(const RotaryRow& row) {
  const std::int64_t half = row.half;
  const T* x = static_cast<const T*>(row.input);
  const T* cos = static_cast<const T*>(row.cos);
  const T* sin = static_cast<const T*>(row.sin);
  T* output = static_cast<T*>(row.output);
  for (std::int64_t d = 0; d < half; d += kLanes) {
    const std::int64_t count = half - d < kLanes ? half - d : kLanes;
    const auto take = [count](const T* source) {
      return count == kLanes ? load(source) : load_partial(source, count);
    };
    const Floats first = take(x + d), second = take(x + half + d);
    const Floats results[2] = {
        turned<T>(first, take(cos + d), -second, take(sin + d)),
        turned<T>(second, take(cos + half + d), first, take(sin + half + d))};
    for (int i = 0; i < 2; ++i) {
      T* target = output + i * half + d;
      if (count == kLanes) {
        store(target, results[i]);
      } else {
        store_partial(target, results[i], count);
      }
    }
  }
}

}  // namespace

void rotate_row(const RotaryRow& row) {
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
