#pragma once

#include <cstdint>

namespace libvar {

/// The visual tokens of one image.
struct VisualSize {
  std::int64_t tokens = 0;
  std::int64_t rows = 0, columns = 0;  ///< their grid; 0 where they are in several tiles
};

}  // namespace libvar
