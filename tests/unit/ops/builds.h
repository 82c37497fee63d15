#pragma once

// The CPU kernels in every build that this processor runs (cpu/capability.h).

#include "catch.h"
#include "cpu/capability.h"

namespace libvar::test {

/// Calls f once for each build.
template <typename F>
void with_each_build(F&& f) {
  struct Restore {
    const cpu::Capability before = cpu::capability();

    ~Restore() { cpu::set_capability_for_testing(before); }
  } restore;

  for (int i = 0; i <= static_cast<int>(cpu::detected_capability()); ++i) {
    cpu::set_capability_for_testing(static_cast<cpu::Capability>(i));
    INFO("build " << i << " of cpu/capability.h");
    f();
  }
}

}  // namespace libvar::test
