#pragma once

#include <cstddef>
#include <cstdint>

namespace libvar::bench {

/// Reads all bytes (whole 256 of them) and gives back something that depends on each. In registers
/// of 32 bytes where there are any: with 16 bytes a core has fewer lines on their way, and reads a
/// tenth less.
[[gnu::target_clones("avx2", "default")]] inline std::uint64_t read_all(const void* data,
                                                                        std::size_t bytes) {
  const auto* words = static_cast<const std::uint64_t*>(data);
  std::uint64_t sums[32] = {};
  for (std::size_t i = 0; i + 32 <= bytes / 8; i += 32) {
    for (std::size_t k = 0; k < 32; ++k) sums[k] ^= words[i + k];
  }
  std::uint64_t result = 0;
  for (const std::uint64_t sum : sums) result ^= sum;
  return result;
}

}  // namespace libvar::bench
