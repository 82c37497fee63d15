#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/harness.h"

namespace libvar::bench {

std::size_t last_level_cache_bytes();

/// Puts processor, GPU and versions into the context of Google Benchmark's report.
void describe_machine(const Options& options, int threads);

}  // namespace libvar::bench
