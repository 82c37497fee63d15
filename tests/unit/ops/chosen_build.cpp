// LIBVAR_TEST_CPU_BUILD=portable|avx2|avx512|avx512_bf16: the tests of the ops run in that build of
// the CPU kernels. Not set: in the one that the library chooses.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/capability.h"

namespace libvar::test {
namespace {

const bool chosen = [] {
  const char* wanted = std::getenv("LIBVAR_TEST_CPU_BUILD");
  if (wanted == nullptr) return false;
  const char* names[cpu::kNumCapabilities] = {"portable", "avx2", "avx512", "avx512_bf16"};
  for (int i = 0; i < cpu::kNumCapabilities; ++i) {
    if (std::strcmp(wanted, names[i]) != 0) continue;
    const auto capability = static_cast<cpu::Capability>(i);
    if (capability > cpu::detected_capability()) {
      std::printf("SKIPPED: this processor does not run the build %s\n", wanted);
      std::exit(0);
    }
    cpu::set_capability_for_testing(capability);
    return true;
  }
  std::fprintf(stderr, "LIBVAR_TEST_CPU_BUILD: no build is called %s\n", wanted);
  std::exit(1);
}();

}  // namespace
}  // namespace libvar::test
