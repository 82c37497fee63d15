#pragma once

// The method's heart: the class of a key and the weights of a row. One definition for every kernel,
// CPU and CUDA, and for the analyses. No torch, no CUDA runtime: the same text is compiled by g++
// and by nvcc.

#include <cstdint>

#include "libvar/redistribution_rule.h"

#if defined(__CUDACC__)
#define LIBVAR_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Always inlined, so that no copy for one instruction set can be linked where another is expected.
#define LIBVAR_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace libvar {

/// Class index of a key. NaN is never a sink, because every comparison with it is false.
LIBVAR_HOST_DEVICE int token_class(float sink_score, bool visual, float tau) {
  const bool is_sink = sink_score >= tau;
  return (visual ? 0 : 2) + (is_sink ? 0 : 1);
}

/// Mass of the classes in `set`, summed in index order, so that all kernels add in the same order.
LIBVAR_HOST_DEVICE float mass_of(const float mass[kNumTokenClasses], unsigned set) {
  float sum = 0.0f;
  for (int c = 0; c < kNumTokenClasses; ++c) {
    if ((set >> c) & 1u) sum += mass[c];
  }
  return sum;
}

/// The smallest normal float. A target mass below it counts as 0: its reciprocal may be infinite,
/// and some devices flush it to 0.
inline constexpr float kLeastTargetMass = 1.17549435e-38f;

/// Factors of a row's four classes, all exactly 1 where the row is not selected or p is 0.
struct ClassWeights {
  float weight[kNumTokenClasses];
  bool selected;
};

/// Decides one row of one head and gives its class weights (var.md sections 2 and 3).
///
/// @param mass              probability mass of each class; the four add up to 1 (0 for a row
/// without keys)
/// @param num_visual_keys   visual keys that the row sees; read only with ratio_epsilon > 0
/// @param eligible          row mask, and a visual sink among the keys that the row sees
LIBVAR_HOST_DEVICE ClassWeights class_weights(const float mass[kNumTokenClasses],
                                              const RedistributionRule& rule, float num_visual_keys,
                                              bool eligible) {
  ClassWeights result{{1.0f, 1.0f, 1.0f, 1.0f}, false};
  if (!eligible || rule.head_rule == HeadRule::kNone) return result;
  const float target_mass = mass_of(mass, rule.targets);
  if (!(target_mass >= kLeastTargetMass)) return result;
  if (rule.head_rule == HeadRule::kRatio) {
    const float visual_sink = mass[static_cast<int>(TokenClass::kVisualSink)];
    const float visual_non_sink = mass[static_cast<int>(TokenClass::kVisualNonSink)];
    const float visual = visual_non_sink + visual_sink;
    const float ratio = rule.ratio_epsilon > 0.0f
                            ? 1.0f - visual_sink / (visual + rule.ratio_epsilon * num_visual_keys)
                            : visual_non_sink / visual;
    if (!(visual_non_sink > 0.0f) || !(visual >= rule.min_visual_mass) || !(ratio >= rule.rho))
      return result;
  }
  result.selected = true;
  const float omega = rule.p * mass_of(mass, rule.sources);
  const float target_weight = 1.0f + omega / target_mass;
  for (int c = 0; c < kNumTokenClasses; ++c) {
    if ((rule.sources >> c) & 1u) result.weight[c] = 1.0f - rule.p;
    if ((rule.targets >> c) & 1u) result.weight[c] = target_weight;
  }
  return result;
}

}  // namespace libvar
