#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "libvar/convert.h"

namespace var_command {

/// The shortest decimal number that reads back as this float: 0.8, not 0.800000011920929.
std::string float_text(float value);

/// The double nearest to that decimal number.
double decimal(float value);

/// Six digits, as CSV files and axes have them.
std::string number_text(double value);

/// "12.3 MB", powers of ten.
std::string bytes_text(std::int64_t bytes);

/// "7,063,427,072".
std::string grouped(std::int64_t value);

/// "bfloat16", "bfloat16, decoder int8".
std::string dtype_text(const libvar::ArchiveInfo& info);

/// "1415, 2533".
std::string list_text(const std::vector<std::int64_t>& values);

}  // namespace var_command
