#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>

#include <filesystem>

#include "image/image.h"
#include "libvar/error.h"
#include "pictures.h"
#include "temporary_folder.h"

#include "catch.h"

namespace libvar {
namespace {

using testing::encode;
using testing::make_picture;
using testing::with_exif;

at::Tensor rgb(const cv::Mat& picture) {
  at::Tensor image = at::empty({picture.rows, picture.cols, 3}, at::kByte);
  for (int y = 0; y < picture.rows; ++y) {
    for (int x = 0; x < picture.cols; ++x) {
      for (int c = 0; c < 3; ++c) {
        image.data_ptr<std::uint8_t>()[(y * picture.cols + x) * 3 + c] =
            picture.at<cv::Vec3b>(y, x)[2 - c];
      }
    }
  }
  return image;
}

std::string message(const std::filesystem::path& path) {
  try {
    read_image(path);
  } catch (const InputError& error) {
    return error.what();
  }
  return "accepted";
}

TEST_CASE("lossless formats give the pixels that were written, red first", "[image]") {
  const std::string extension = GENERATE(".png", ".bmp");
  const cv::Mat picture = make_picture(21, 34);
  CHECK(at::equal(decode_image(encode(picture, extension), "x"), rgb(picture)));
}

TEST_CASE("alpha is dropped without compositing", "[image]") {
  const cv::Mat picture = make_picture(21, 34);
  cv::Mat translucent(picture.size(), CV_8UC4);
  for (int y = 0; y < picture.rows; ++y) {
    for (int x = 0; x < picture.cols; ++x) {
      const auto& pixel = picture.at<cv::Vec3b>(y, x);
      translucent.at<cv::Vec4b>(y, x) =
          cv::Vec4b(pixel[0], pixel[1], pixel[2], static_cast<std::uint8_t>(x));
    }
  }
  CHECK(at::equal(decode_image(encode(translucent, ".png"), "x"), rgb(picture)));
}

TEST_CASE("grey and 16-bit pictures become 8-bit RGB", "[image]") {
  cv::Mat grey(5, 7, CV_8UC1), deep(5, 7, CV_16UC3);
  for (int y = 0; y < 5; ++y) {
    for (int x = 0; x < 7; ++x) {
      grey.at<std::uint8_t>(y, x) = static_cast<std::uint8_t>(30 * y + x);
      deep.at<cv::Vec3w>(y, x) =
          cv::Vec3w(static_cast<std::uint16_t>((30 * y + x) << 8 | 0x7f), 0, 0xffff);
    }
  }
  const at::Tensor from_grey = decode_image(encode(grey, ".png"), "x");
  const at::Tensor from_deep = decode_image(encode(deep, ".png"), "x");
  for (int y = 0; y < 5; ++y) {
    for (int x = 0; x < 7; ++x) {
      for (int c = 0; c < 3; ++c) CHECK(from_grey[y][x][c].item<int>() == 30 * y + x);
      CHECK(from_deep[y][x][0].item<int>() == 255);
      CHECK(from_deep[y][x][1].item<int>() == 0);
      CHECK(from_deep[y][x][2].item<int>() == 30 * y + x);
    }
  }
}

TEST_CASE("a picture is turned as its EXIF orientation says", "[image]") {
  const cv::Mat picture = make_picture(16, 24);
  const std::string plain = encode(picture, ".jpg");
  const at::Tensor stored = decode_image(plain, "x");
  const int height = 16, width = 24;
  // Where the pixel (y, x) of the upright picture lies in the file, from the EXIF standard's table.
  const auto source = [&](int orientation, int y, int x) -> std::pair<int, int> {
    switch (orientation) {
      case 2:
        return {y, width - 1 - x};
      case 3:
        return {height - 1 - y, width - 1 - x};
      case 4:
        return {height - 1 - y, x};
      case 5:
        return {x, y};
      case 6:
        return {height - 1 - x, y};
      case 7:
        return {height - 1 - x, width - 1 - y};
      case 8:
        return {x, width - 1 - y};
      default:
        return {y, x};
    }
  };
  for (int orientation = 1; orientation <= 8; ++orientation) {
    INFO("orientation " << orientation);
    const std::string file = with_exif(plain, orientation, orientation % 2 == 0);
    CHECK(at::equal(decode_image(file, "x", /*exif_rotation=*/false), stored));
    const at::Tensor upright = decode_image(file, "x");
    REQUIRE(upright.size(0) == (orientation < 5 ? height : width));
    REQUIRE(upright.is_contiguous());
    bool same = true;
    for (int y = 0; y < upright.size(0); ++y) {
      for (int x = 0; x < upright.size(1); ++x) {
        const auto [from_y, from_x] = source(orientation, y, x);
        same = same && at::equal(upright[y][x], stored[from_y][from_x]);
      }
    }
    CHECK(same);
  }
}

TEST_CASE("what can't be read as a picture is named with its path", "[image]") {
  const testing::TemporaryFolder folder;
  CHECK(message(folder / "none.png") ==
        "image " + (folder / "none.png").string() + ": no such file");
  CHECK(message(folder.path()) ==
        "image " + folder.path().string() + ": is a directory, expected a picture file");
  testing::write_bytes(folder / "text.png", "hello, world\n");
  CHECK(message(folder / "text.png") ==
        "image " + (folder / "text.png").string() + ": not a PNG, JPEG, WebP or BMP file");
  const std::string bytes = encode(make_picture(16, 24), ".jpg");
  testing::write_bytes(folder / "half.jpg", bytes.substr(0, bytes.size() / 2));
  CHECK(message(folder / "half.jpg").find("half.jpg: truncated JPEG file of") != std::string::npos);
}

TEST_CASE("pixels in memory are copied, and their number is checked", "[image]") {
  RgbImage image{3, 2, std::vector<std::uint8_t>(18)};
  for (std::size_t i = 0; i < 18; ++i) image.pixels[i] = static_cast<std::uint8_t>(i);
  const ImageSource source = image;
  const at::Tensor tensor = to_tensor(source);
  CHECK(tensor.sizes() == at::IntArrayRef({2, 3, 3}));
  CHECK(tensor[1][2][0].item<int>() == 15);
  CHECK(tensor.data_ptr<std::uint8_t>() != std::get<RgbImage>(source).pixels.data());

  image.pixels.pop_back();
  CHECK_THROWS_AS(to_tensor(image), InputError);
  CHECK_THROWS_AS(to_tensor(RgbImage{0, 2, {}}), InputError);
  CHECK_THROWS_AS(to_tensor(RgbImage{-1, -2, std::vector<std::uint8_t>(6)}), InputError);
}

}  // namespace
}  // namespace libvar
