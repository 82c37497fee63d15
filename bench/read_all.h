#pragma once

#include <cstddef>
#include <cstdint>

namespace libvar::bench {

/// Reads all bytes (whole 64 of them) and gives back something that depends on each.
inline std::uint64_t read_all(const void* data, std::size_t bytes) {
  const auto* words = static_cast<const std::uint64_t*>(data);
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i + 8 <= bytes / 8; i += 8) {
    for (std::size_t k = 0; k < 8; ++k) sums[k] ^= words[i + k];
  }
  std::uint64_t result = 0;
  for (const std::uint64_t sum : sums) result ^= sum;
  return result;
}

}  // namespace libvar::bench
