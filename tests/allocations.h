#pragma once

// What LibTorch allocates on the CPU in this thread.

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <cstdint>
#include <memory>

namespace libvar::testing {

/// Sums up allocations for as long as it lives.
class Allocations {
 public:
  std::int64_t peak() const { return counts_->peak; }  ///< most bytes at once

  std::int64_t largest() const { return counts_->largest; }  ///< bytes of one allocation

 private:
  struct Counts : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, std::int64_t size, std::size_t, std::size_t,
                           c10::Device device) override {
      if (!device.is_cpu()) return;
      now += size;
      peak = std::max(peak, now);
      largest = std::max(largest, size);
    }

    bool memoryProfilingEnabled() const override { return true; }

    std::int64_t now = 0, peak = 0, largest = 0;
  };

  std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();
  c10::DebugInfoGuard guard_{c10::DebugInfoKind::PROFILER_STATE, counts_};
};

}  // namespace libvar::testing
