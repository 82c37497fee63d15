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

struct SwigluResult {
  std::vector<double> output;                ///< [M, N]
  std::vector<double> gate_slope, up_slope;  ///< [M, N] how output answers to errors of the maps
};

/// silu(gate) * up of two linear maps; both maps, silu and the product are rounded by `round`.
template <typename Round>
SwigluResult swiglu(const LinearResult& gate, const LinearResult& up, const Round& round) {
  SwigluResult result;
  for (std::size_t i = 0; i < gate.output.size(); ++i) {
    const double g = round(gate.output[i]), u = round(up.output[i]);
    const double share = 1.0 / (1.0 + std::exp(-g)), silu = round(g * share);
    result.output.push_back(round(silu * u));
    result.gate_slope.push_back(std::fabs(share * (1.0 + g * (1.0 - share)) * u));
    result.up_slope.push_back(std::fabs(silu));
  }
  return result;
}

}  // namespace libvar::reference
