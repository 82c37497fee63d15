#pragma once

// Sink scores and RMSNorm in double precision, written from var.md and from transformers' order of
// rounding. No torch.

#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace libvar::reference {

/// To the nearest value of the dtype under test, ties to even.
using RoundTo = std::function<double(double)>;

struct NormResult {
  std::vector<double> residual;  ///< [T, D] hidden, or the rounded sum of residual and delta
  std::vector<double> normed;    ///< [T, D]
  std::vector<double> phi;       ///< [T]
};

/// @param hidden     [T, D]
/// @param delta      [T, D] or empty
/// @param weight     [D] or empty (normed stays empty then)
/// @param sink_dims  [S], entries outside [0, D) are ignored; phi is 0 where S is 0
inline NormResult rms_norm(const std::vector<double>& hidden, const std::vector<double>& delta,
                           const std::vector<double>& weight,
                           const std::vector<std::int64_t>& sink_dims, std::int64_t hidden_size,
                           double eps, const RoundTo& round) {
  NormResult result;
  result.residual = hidden;
  for (std::size_t i = 0; i < delta.size(); ++i) result.residual[i] = round(hidden[i] + delta[i]);
  for (std::size_t start = 0; start < hidden.size();
       start += static_cast<std::size_t>(hidden_size)) {
    const double* x = result.residual.data() + start;
    double sum = 0.0;
    for (std::int64_t d = 0; d < hidden_size; ++d) sum += x[d] * x[d];
    const double rms = std::sqrt(sum / static_cast<double>(hidden_size) + eps);
    double largest = 0.0;
    for (const std::int64_t d : sink_dims) {
      if (d >= 0 && d < hidden_size) largest = std::fmax(largest, std::fabs(x[d]));
    }
    result.phi.push_back(sink_dims.empty() ? 0.0 : largest / rms);
    for (std::int64_t d = 0; d < hidden_size && !weight.empty(); ++d) {
      result.normed.push_back(round(weight[static_cast<std::size_t>(d)] * round(x[d] / rms)));
    }
  }
  return result;
}

}  // namespace libvar::reference
