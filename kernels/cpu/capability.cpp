#include "cpu/capability.h"

#include <cpuid.h>

#include <algorithm>
#include <atomic>

namespace libvar::cpu {
namespace {

// Two features are read from the processor, because Clang 14 does not know GCC's names of them.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_bfloat16_products() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVX512BF16) != 0;
}

// GCC's check includes that the operating system saves the registers (XSAVE).
Capability detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!avx2) return Capability::kPortable;
  if (!avx512) return Capability::kAvx2;
  return has_bfloat16_products() ? Capability::kAvx512Bf16 : Capability::kAvx512;
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
