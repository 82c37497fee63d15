#pragma once

#include <fstream>
#include <string>

namespace libvar::bench {

/// What /proc/cpuinfo says of the first processor ("model name", "flags"), or "unknown".
inline std::string cpu_field(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const std::size_t colon = line.find(": ");
    return colon == std::string::npos ? "" : line.substr(colon + 2);
  }
  return "unknown";
}

}  // namespace libvar::bench
