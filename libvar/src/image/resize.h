#pragma once

#include <array>
#include <cstdint>

#include "image/config.h"

namespace libvar {

/// A picture of three interleaved 8-bit channels, lying on a larger canvas of one colour. The
/// canvas is never stored.
struct Canvas {
  const std::uint8_t* pixels = nullptr;
  std::int64_t picture_height = 0, picture_width = 0;
  std::int64_t top = 0, left = 0;  ///< of the picture on the canvas
  std::int64_t height = 0, width = 0;
  std::array<std::uint8_t, 3> colour{};
};

/// A part of the resized canvas.
struct Window {
  std::int64_t top = 0, left = 0, height = 0, width = 0;
};

/// The window of what Pillow's bicubic resize of the canvas to height x width gives, bit for bit.
///
/// The order of the passes is that of the whole canvas, whatever the window.
///
/// Only what the window needs is computed: a very long picture whose middle is cut out costs no
/// more than that.
/// @param out  window.height * window.width * 3 bytes
void resize_window(const Canvas& canvas, std::int64_t height, std::int64_t width,
                   const Window& window, ResizePassOrder order, std::uint8_t* out);

}  // namespace libvar
