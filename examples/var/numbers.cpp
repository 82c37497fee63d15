#include "numbers.h"

#include <array>
#include <charconv>
#include <cstdio>
#include <cstdlib>

namespace var_command {

std::string float_text(float value) {
  std::array<char, 64> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value);
  return {buffer.data(), end};
}

double decimal(float value) {
  return std::strtod(float_text(value).c_str(), nullptr);
}

std::string number_text(double value) {
  char text[40];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

std::string bytes_text(std::int64_t bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"bytes", "kB", "MB", "GB", "TB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  for (; value >= 999.95 && unit + 1 < kUnits.size(); ++unit) value /= 1000;
  std::array<char, 64> buffer{};
  std::snprintf(buffer.data(), buffer.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value,
                kUnits[unit]);
  return buffer.data();
}

std::string dtype_text(const libvar::ArchiveInfo& info) {
  return info.quantization.empty() ? info.dtype : info.dtype + ", decoder " + info.quantization;
}

std::string grouped(std::int64_t value) {
  const std::string digits = std::to_string(value);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0 && digits[i - 1] != '-') text += ',';
    text += digits[i];
  }
  return text;
}

std::string list_text(const std::vector<std::int64_t>& values) {
  std::string text;
  for (std::int64_t value : values)
    text.append(text.empty() ? "" : ", ").append(std::to_string(value));
  return text;
}

}  // namespace var_command
