#pragma once

namespace libvar {

// Error bounds that the doc blocks of ops.h name and that tests hold the ops to. Half types: at
// most twice the error of the same computation in PyTorch at that dtype, plus one unit in the last
// place of the result.

/// Relative error of phi against double precision, float32 input.
inline constexpr double kSinkScoreBound = 1e-5;

/// Error of a linear map's output against double precision, float32, relative to
/// sum_k |input[k] weight[k]| + |bias|.
inline constexpr double kLinearBound = 1e-5;

/// Absolute error of a redistributed probability against double precision given the same selection,
/// float32.
inline constexpr double kRedistributeBound = 1e-5;

/// Error of an attention output against double precision given the same selection, float32,
/// relative to the largest magnitude of the values.
inline constexpr double kAttentionBound = 1e-5;

}  // namespace libvar
