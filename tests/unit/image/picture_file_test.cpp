#include "image/picture_file.h"

#include <ATen/core/Tensor.h>

#include "libvar/error.h"
#include "pictures.h"

#include "catch.h"

namespace libvar {
namespace {

using testing::encode;
using testing::exif_block;
using testing::make_picture;
using testing::with_exif;

std::string message(const std::string& bytes) {
  try {
    inspect_picture_file(bytes, "x.pic");
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("a picture file's size is read from its header", "[image]") {
  const std::string extension = GENERATE(".png", ".jpg", ".webp", ".bmp");
  const PictureFile file = inspect_picture_file(encode(make_picture(21, 34), extension), "x");
  CHECK(file.height == 21);
  CHECK(file.width == 34);
  CHECK(file.orientation == 1);
}

TEST_CASE("a picture file cut anywhere is refused", "[image]") {
  const std::string extension = GENERATE(".png", ".jpg", ".webp", ".bmp");
  const std::string bytes = encode(make_picture(21, 34), extension);
  REQUIRE(message(bytes) == "accepted");
  for (std::size_t size = 12; size < bytes.size(); ++size) {
    const std::string text = message(bytes.substr(0, size));
    INFO(extension << " cut to " << size << " of " << bytes.size() << " bytes: " << text);
    CHECK(text.starts_with("image x.pic: truncated "));
  }
}

TEST_CASE("what is no picture is named as such", "[image]") {
  CHECK(message("") == "image x.pic: the file is empty");
  CHECK(message("hello, world\n") == "image x.pic: not a PNG, JPEG, WebP or BMP file");
  CHECK(message("GIF89a............") == "image x.pic: not a PNG, JPEG, WebP or BMP file");
  CHECK(message("\x89PN") == "image x.pic: truncated file of 3 bytes");
}

TEST_CASE("a PNG whose pixel data are changed is refused", "[image]") {
  std::string bytes = encode(make_picture(21, 34), ".png");
  const std::size_t data = bytes.find("IDAT") + 10;
  bytes[data] = static_cast<char>(bytes[data] ^ 1);
  CHECK(message(bytes) == "image x.pic: damaged PNG file: wrong checksum of its IDAT chunk");
}

TEST_CASE("a picture of too many pixels is refused before it is decoded", "[image]") {
  std::string bytes = encode(make_picture(21, 34), ".bmp");
  bytes[20] = bytes[24] = '\x7f';  // upper bytes of width and height
  CHECK(message(bytes).find("at most 268435456 are supported") != std::string::npos);
}

TEST_CASE("a JPEG without pixels is refused", "[image]") {
  const std::string bytes = encode(make_picture(21, 34), ".jpg");
  const std::string cut = bytes.substr(0, bytes.find("\xff\xda")) + "\xff\xd9";
  CHECK(message(cut) == "image x.pic: damaged JPEG file: no pixels in it");
}

TEST_CASE("metadata are left out of what the decoder gets", "[image]") {
  const std::string plain = encode(make_picture(21, 34), ".jpg");
  const PictureFile file = inspect_picture_file(with_exif(plain, 6, true), "x");
  CHECK(file.bytes == plain);
  CHECK(inspect_picture_file(plain + "a second picture", "x").bytes == plain);
}

TEST_CASE("the EXIF orientation is read in both byte orders", "[image]") {
  const bool big_endian = GENERATE(false, true);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    CHECK(exif_orientation(exif_block(orientation, big_endian)) == orientation);
    CHECK(exif_orientation(std::string("Exif\0\0", 6) + exif_block(orientation, big_endian)) ==
          orientation);
  }
  CHECK(exif_orientation(exif_block(0, big_endian)) == 1);
  CHECK(exif_orientation(exif_block(9, big_endian)) == 1);
  const std::string block = exif_block(6, big_endian);
  for (std::size_t size = 0; size < 18; ++size) CHECK(exif_orientation(block.substr(0, size)) == 1);
}

TEST_CASE("the orientation of PNG and WebP files is read too", "[image]") {
  const auto little = [](std::size_t size) {
    return std::string{static_cast<char>(size & 0xff), static_cast<char>(size >> 8), '\0', '\0'};
  };
  const std::string block = exif_block(8, true);
  const std::string png = encode(make_picture(21, 34), ".png");
  const std::string chunk =
      std::string("\0\0\0", 3) + static_cast<char>(block.size()) + "eXIf" + block + "sums";
  CHECK(inspect_picture_file(png.substr(0, 33) + chunk + png.substr(33), "x").orientation == 8);
  std::string webp = encode(make_picture(21, 34), ".webp") + "EXIF" + little(block.size()) + block;
  webp.replace(4, 4, little(webp.size() - 8));
  CHECK(inspect_picture_file(webp, "x").orientation == 8);
}

TEST_CASE("a JPEG with restart markers is kept whole", "[image]") {
  std::vector<std::uint8_t> bytes;
  CV_Assert(cv::imencode(".jpg", make_picture(64, 64), bytes, {cv::IMWRITE_JPEG_RST_INTERVAL, 1}));
  const std::string file(bytes.begin(), bytes.end());
  REQUIRE(file.find("\xff\xd0") != std::string::npos);
  CHECK(inspect_picture_file(file, "x").bytes == file);
}

TEST_CASE("EXIF data that point outside the block are ignored", "[image]") {
  std::string block = exif_block(6, false);
  block[4] = block[5] = block[6] = block[7] = '\xff';
  CHECK(exif_orientation(block) == 1);
}

}  // namespace
}  // namespace libvar
