#include "cpu/capability.h"

#include <algorithm>
#include <atomic>

namespace libvar::cpu {
namespace {

// GCC's check includes that the operating system saves the registers (XSAVE).
Capability detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx2) return Capability::kPortable;
  if (!avx512) return Capability::kAvx2;
  return __builtin_cpu_supports("avx512bf16") ? Capability::kAvx512Bf16 : Capability::kAvx512;
}

std::atomic<Capability>& current() {
  static std::atomic<Capability> value{detected_capability()};
  return value;
}

}  // namespace

Capability detected_capability() {
  static const Capability detected = detect();
  return detected;
}

Capability capability() {
  return current().load(std::memory_order_relaxed);
}

void set_capability_for_testing(Capability chosen) {
  current().store(std::min(chosen, detected_capability()), std::memory_order_relaxed);
}

}  // namespace libvar::cpu
