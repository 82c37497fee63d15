#pragma once

#include <string>
#include <string_view>

namespace libvar {

/// Name of the scales of the quantized weight X.weight: X.weight_scale, float32, one for each row.
inline std::string scale_name(const std::string& weight) {
  return weight + "_scale";
}

/// Whether a tensor holds such scales.
inline bool is_scale_name(std::string_view name) {
  return name.ends_with(".weight_scale");
}

}  // namespace libvar
