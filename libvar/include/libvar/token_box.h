#pragma once

#include <cstdint>

namespace libvar {

/// The part of a picture that a visual token stands for, in pixels of the picture as it is seen
/// (after EXIF rotation); x to the right, y down. It may reach over the picture's borders.
struct TokenBox {
  double left = 0, top = 0, right = 0, bottom = 0;
  /// Index of the tile; of a picture in several tiles the last may be the thumbnail.
  std::int64_t tile = 0;
  bool thumbnail = false;
};

}  // namespace libvar
