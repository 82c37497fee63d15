#pragma once

// Rotary position embedding on the CPU, without torch: what the entry file (rotary.cpp) hands to
// the builds of rotary_kernel.cpp.

#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"

namespace libvar::cpu {

/// One head of one token.
struct RotaryRow {
  ElementType type;
  const void* input;  ///< [2 * half]
  const void* cos;    ///< [2 * half]
  const void* sin;    ///< [2 * half]
  void* output;       ///< [2 * half]; not the input
  std::int64_t half;
};

}  // namespace libvar::cpu

LIBVAR_DECLARE_CPU_BUILDS(void rotate_row(const RotaryRow& row))
