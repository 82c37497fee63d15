#pragma once

// The element types of the CPU kernels, without torch: same bits as c10::Half and c10::BFloat16.

#include <cstdint>

namespace libvar::cpu {

struct Half {
  std::uint16_t bits;
};

struct Bfloat16 {
  std::uint16_t bits;
};

enum class ElementType : std::uint8_t { kFloat, kHalf, kBfloat16 };

/// Elements that group.h handles together.
inline constexpr int kGroup = 32;

/// The lane of a group that holds its element i.
constexpr int group_lane(ElementType type, int i) {
  return type == ElementType::kBfloat16 ? i / 2 + i % 2 * (kGroup / 2) : i;
}

}  // namespace libvar::cpu
