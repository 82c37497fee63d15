#pragma once

#include <c10/core/ScalarType.h>

#include "cpu/elements.h"

namespace libvar::cpu {

/// The kernels' name of a floating dtype. The dtype was checked before (checks.h).
inline ElementType element_type(at::ScalarType type) {
  if (type == at::kHalf) return ElementType::kHalf;
  return type == at::kBFloat16 ? ElementType::kBfloat16 : ElementType::kFloat;
}

}  // namespace libvar::cpu
