#pragma once

// sink_scores and the norms on the CPU, without torch: what the entry file (norms.cpp) hands to the
// builds of norms_kernel.cpp.

#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"

namespace libvar::cpu {

/// One row of D elements and where its results go.
struct NormRow {
  ElementType type;
  const void* hidden;  ///< null: residual + delta, rounded, is written to residual and taken
  void* residual;
  const void* delta;
  const void* weight;  ///< null: phi only
  void* normed;
  float* score;
  const std::int64_t* sink_dims;
  std::int64_t num_sink_dims;
  std::int64_t hidden_size;
  float eps;
};

}  // namespace libvar::cpu

LIBVAR_DECLARE_CPU_BUILDS(void norm_row(const NormRow& row))
