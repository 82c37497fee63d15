#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "temporary_folder.h"

namespace libvar::testing {

/// Path of a file of the golden data.
inline std::string golden_path(const std::string& name) {
  return LIBVAR_SOURCE_DIR "/tests/golden/" + name;
}

inline std::string golden_bytes(const std::string& name) {
  return read_bytes(golden_path(name));
}

inline nlohmann::json golden_json(const std::string& name) {
  return nlohmann::json::parse(golden_bytes(name));
}

}  // namespace libvar::testing
