#pragma once

#include <malloc.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>

namespace libvar::testing {

/// What this process holds.
struct Memory {
  std::int64_t resident = 0;   ///< bytes in RAM, mapped files included: programs and models
  std::int64_t anonymous = 0;  ///< those of no file; the system takes pages of files when it likes
  std::int64_t heap = 0;       ///< bytes that were allocated and not freed

  /// Measures, after what is free has gone back to the system.
  static Memory now() {
    malloc_trim(0);
    Memory out;
    std::int64_t size = 0, resident = 0, of_files = 0;  // pages
    std::ifstream("/proc/self/statm") >> size >> resident >> of_files;
    out.resident = resident * sysconf(_SC_PAGESIZE);
    out.anonymous = (resident - of_files) * sysconf(_SC_PAGESIZE);
    const struct mallinfo2 info = mallinfo2();
    out.heap = static_cast<std::int64_t>(info.uordblks + info.hblkhd);
    return out;
  }
};

}  // namespace libvar::testing
