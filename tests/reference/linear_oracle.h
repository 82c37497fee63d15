#pragma once

// Linear maps in double precision. No torch.

#include <cmath>
#include <cstdint>
#include <vector>

namespace libvar::reference {

struct LinearResult {
  std::vector<double> output;     ///< [M, N]
  std::vector<double> magnitude;  ///< [M, N] sum_k |input weight| + |bias|: what errors relate to
};

/// @param input   [M, K]
/// @param weight  [N, K]
/// @param bias    [N] or empty
inline LinearResult linear(const std::vector<double>& input, const std::vector<double>& weight,
                           const std::vector<double>& bias, std::int64_t in_features) {
  LinearResult result;
  const auto size = static_cast<std::size_t>(in_features);
  for (std::size_t m = 0; m * size < input.size(); ++m) {
    for (std::size_t n = 0; n * size < weight.size(); ++n) {
      double sum = bias.empty() ? 0.0 : bias[n], magnitude = std::fabs(sum);
      for (std::size_t k = 0; k < size; ++k) {
        const double product = input[m * size + k] * weight[n * size + k];
        sum += product;
        magnitude += std::fabs(product);
      }
      result.output.push_back(sum);
      result.magnitude.push_back(magnitude);
    }
  }
  return result;
}

}  // namespace libvar::reference
