#pragma once

// Which instructions the CPU kernels use.
//
// A kernel's source (cpu/<op>_kernel.cpp) is compiled once per capability, each time in a namespace
// of its own (LIBVAR_CPU_NAMESPACE, see libvar_add_cpu_builds in CMake). Everything else, the
// entry files cpu/<op>.cpp included, is compiled for plain x86-64. So that the linker can never put
// code for a newer processor where an older one runs, a kernel's source uses nothing that a linker
// merges by name: no ATen, no standard containers or algorithms, only vector.h, raw pointers and a
// struct of parameters. Test `ops_cpu_symbols` looks for what broke this rule.

namespace libvar::cpu {

/// In ascending order: a processor with one capability has those before it.
enum class Capability {
  kPortable,    ///< x86-64 as it began: SSE2
  kAvx2,        ///< AVX2, FMA, F16C
  kAvx512,      ///< AVX-512 F, BW, DQ, VL
  kAvx512Bf16,  ///< and dot products of bfloat16
};

inline constexpr int kNumCapabilities = 4;

/// What this processor and its operating system offer. Found out once.
Capability detected_capability();

/// What the kernels use: detected_capability() unless a test chose less.
Capability capability();

/// For tests: makes all kernels of the process use `chosen`, at most what was detected.
void set_capability_for_testing(Capability chosen);

/// One function in its builds.
template <typename Function>
struct CpuBuilds {
  Function* builds[kNumCapabilities];

  Function* chosen() const { return builds[static_cast<int>(capability())]; }
};

}  // namespace libvar::cpu

/// Declares a function of libvar::cpu in the namespace of every build.
#define LIBVAR_DECLARE_CPU_BUILDS(...) \
  namespace libvar::cpu {              \
  namespace portable {                 \
  __VA_ARGS__;                         \
  }                                    \
  namespace avx2 {                     \
  __VA_ARGS__;                         \
  }                                    \
  namespace avx512 {                   \
  __VA_ARGS__;                         \
  }                                    \
  namespace avx512_bf16 {              \
  __VA_ARGS__;                         \
  }                                    \
  }

/// The CpuBuilds of a function declared so. For use in libvar::cpu.
#define LIBVAR_CPU_BUILDS(function)                                               \
  ::libvar::cpu::CpuBuilds<decltype(::libvar::cpu::portable::function)> {         \
    {                                                                             \
      &::libvar::cpu::portable::function, &::libvar::cpu::avx2::function,         \
          &::libvar::cpu::avx512::function, &::libvar::cpu::avx512_bf16::function \
    }                                                                             \
  }
