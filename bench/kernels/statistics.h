#pragma once

// Order statistics of timings. No torch, no Google Benchmark.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace libvar::bench {

/// Value below which the share q of the sorted samples lies, linear between neighbours.
inline double quantile(const std::vector<double>& sorted, double q) {
  if (sorted.empty()) return std::nan("");
  const double place = q * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<std::size_t>(place);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  const double rest = place - static_cast<double>(below);
  return sorted[below] + rest * (sorted[above] - sorted[below]);
}

struct Summary {
  double median = 0.0, min = 0.0, p10 = 0.0, p90 = 0.0;
  double low = 0.0, high = 0.0;  ///< 95 % interval of the median, by the ranks of a binomial
};

/// NaN stands for a round in which nothing was measured.
inline Summary summarise(std::vector<double> samples) {
  std::erase_if(samples, [](double sample) { return std::isnan(sample); });
  std::sort(samples.begin(), samples.end());
  const double n = static_cast<double>(samples.size());
  const double half_width = n > 1.0 ? 0.98 * std::sqrt(n) / (n - 1.0) : 0.5;
  return {.median = quantile(samples, 0.5),
          .min = quantile(samples, 0.0),
          .p10 = quantile(samples, 0.1),
          .p90 = quantile(samples, 0.9),
          .low = quantile(samples, std::max(0.0, 0.5 - half_width)),
          .high = quantile(samples, std::min(1.0, 0.5 + half_width))};
}

/// Round by round a / b: what slows a whole round down falls out.
inline std::vector<double> quotients(const std::vector<double>& a, const std::vector<double>& b) {
  std::vector<double> result(std::min(a.size(), b.size()));
  for (std::size_t i = 0; i < result.size(); ++i) result[i] = a[i] / b[i];
  return result;
}

}  // namespace libvar::bench
