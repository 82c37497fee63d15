#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace libvar {

/// A picture file that was found to be whole.
struct PictureFile {
  std::string
      bytes;  ///< what the decoder gets: a JPEG or PNG without metadata, else the file as it is
  int orientation = 1;                 ///< of its EXIF data, 1 to 8; 1 where there is none
  std::int64_t width = 0, height = 0;  ///< as stored, before any rotation
};

/// Reads a picture file's structure, no pixels.
///
/// OpenCV gives half a picture for some truncated files, and its decoders write what they think of
/// others to stderr (broken checksums, odd colour profiles). Here the first are refused and what
/// causes the second is left out, so that a file is either decoded in silence or refused with one
/// clear message.
/// @throws InputError  not a PNG, JPEG, WebP or BMP file, truncated, damaged, animated, or too
/// large
PictureFile inspect_picture_file(std::string_view bytes, const std::string& name);

/// Orientation tag of a TIFF block as EXIF has it (the optional "Exif\0\0" in front is skipped); 1
/// where it has none.
int exif_orientation(std::string_view tiff);

}  // namespace libvar
