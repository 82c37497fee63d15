#pragma once

#include <cstdint>

namespace libvar {

/// Class of a key, as one row of attention sees it.
///
/// Source: arXiv:2503.03321, Section 3 (sink tokens) and Section 5 (redistribution).
/// A key is visual or text by its position and a sink or not by its score:
///     phi = max_{d in D_sink} |x[d]| / sqrt(mean_d(x[d]^2) + eps),  sink iff phi >= tau.
/// The values are indices into arrays of four and bit positions of a ClassSet.
enum class TokenClass : std::uint8_t {
  kVisualSink = 0,
  kVisualNonSink = 1,
  kTextSink = 2,
  kTextNonSink = 3,
};

inline constexpr int kNumTokenClasses = 4;

/// A set of token classes: bit c stands for TokenClass(c).
using ClassSet = std::uint8_t;

constexpr ClassSet class_set(TokenClass token_class) {
  return static_cast<ClassSet>(1u << static_cast<unsigned>(token_class));
}

constexpr ClassSet class_set(TokenClass first, TokenClass second) {
  return static_cast<ClassSet>(class_set(first) | class_set(second));
}

/// Which heads of an eligible row are changed.
enum class HeadRule : std::uint8_t {
  kRatio = 0,  ///< heads with non-sink ratio r >= rho and visual mass >= min_visual_mass
  kAll = 1,    ///< every head whose target mass is not zero
  kNone = 2,   ///< no head: plain attention
};

/// Thresholds and shares of the redistribution, for one call of a kernel.
///
/// Source: arXiv:2503.03321, Equations 3 and 4, in the paper's own meaning of rho and p.
///     r      = m_VN / (m_VN + m_VS)                     visual non-sink ratio of a head and row
///     omega  = p * sum of the source classes' mass
///     a'[j]  = (1 - p) * a[j]                           j in a source class
///     a'[j]  = a[j] * (1 + omega / target mass)         j in a target class
/// with m_C the attention probability mass of class C in the row.
struct RedistributionRule {
  float tau = 20.0f;             ///< sink threshold on phi, >= 0, +inf allowed
  float rho = 0.8f;              ///< least r of an image-centric head, in [0, 1]
  float p = 0.6f;                ///< share of the sources' attention that is moved, in [0, 1]
  float min_visual_mass = 0.2f;  ///< least m_VN + m_VS of a row that may be changed, in [0, 1]
  /// >= 0. Above 0: r = 1 - m_VS / (m_VN + m_VS + ratio_epsilon * number of visual keys).
  float ratio_epsilon = 0.0f;
  ClassSet sources = class_set(TokenClass::kVisualSink, TokenClass::kTextSink);
  ClassSet targets = class_set(TokenClass::kVisualNonSink);
  HeadRule head_rule = HeadRule::kRatio;
};

}  // namespace libvar
