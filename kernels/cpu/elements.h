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

}  // namespace libvar::cpu
