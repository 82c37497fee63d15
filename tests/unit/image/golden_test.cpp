// Pictures against those of Pillow and of transformers' Pillow processors (tests/golden/README.md).

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <c10/util/StringUtil.h>

#include <bit>
#include <cstring>
#include <set>

#include "convert/safetensors.h"
#include "image/image.h"
#include "libvar/error.h"
#include "reference/golden_files.h"
#include "reference/sha256.h"

#include "catch.h"

namespace libvar {
namespace {

using testing::golden_bytes;
using testing::golden_json;
using testing::golden_path;
using testing::sha256;

/// A tensor of a golden safetensors file, bytes included.
at::Tensor golden_tensor(const std::string& file, const std::string& name) {
  const SafetensorsEntry entry = SafetensorsFile::open(golden_path(file)).entries().at(name);
  at::Tensor out = at::empty(entry.shape, entry.dtype == "U8" ? at::kByte : at::kFloat);
  REQUIRE(entry.end - entry.begin == out.nbytes());
  std::memcpy(out.mutable_data_ptr(), golden_bytes(file).data() + entry.begin, out.nbytes());
  return out;
}

std::string digest(const at::Tensor& image) {
  REQUIRE(image.is_contiguous());
  return sha256(
      {reinterpret_cast<const char*>(image.const_data_ptr<std::uint8_t>()), image.nbytes()});
}

ImageProcessorConfig clip_config(ImageMode mode, std::int64_t size) {
  ImageProcessorConfig config;
  config.mode = mode;
  config.shortest_edge = config.crop_height = config.crop_width = size;
  config.mean = {0.48145466, 0.4578275, 0.40821073};
  config.std = {0.26862954, 0.26130258, 0.27577711};
  return config;
}

TEST_CASE("sha256 gives the standard's digests", "[image][golden]") {
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256(std::string(64, 'a')) ==
        "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
}

TEST_CASE("photographs become the processor's pixels bit for bit", "[image][golden]") {
  const nlohmann::json golden = golden_json("photos.json");
  REQUIRE(golden["photos"].size() == 6);
  for (const auto& photo : golden["photos"]) {
    const at::Tensor image = read_image(golden_path(photo["file"]));
    INFO(photo["file"]);
    CHECK(image.sizes() == at::IntArrayRef({photo["height"], photo["width"], 3}));
    CHECK(digest(image) == photo["decoded_sha256"]);
    for (const auto& [name, mode] :
         {std::pair("crop", ImageMode::kCrop), std::pair("pad", ImageMode::kPad)}) {
      INFO(name);
      const at::Tensor fitted = resize_and_fit(image, clip_config(mode, golden["size"]));
      CHECK(digest(fitted) == photo[name]["sha256"]);
      if (photo[name].contains("picture"))
        CHECK(at::equal(fitted, read_image(golden_path(photo[name]["picture"]))));
    }
  }
}

TEST_CASE("normalised values are within one unit in the last place", "[image][golden]") {
  const at::Tensor golden = golden_tensor("resize.safetensors", "normalise");
  at::Tensor ramp = at::empty({16, 16, 3}, at::kByte);
  for (std::int64_t i = 0; i < ramp.numel(); ++i)
    ramp.mutable_data_ptr<std::uint8_t>()[i] = static_cast<std::uint8_t>(i / 3);
  const at::Tensor values = process_image(ramp, clip_config(ImageMode::kCrop, 16)).pixels[0];
  REQUIRE(golden.numel() == values.numel());
  std::int64_t worst = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    const auto ours = std::bit_cast<std::int32_t>(values.const_data_ptr<float>()[i]);
    const auto theirs = std::bit_cast<std::int32_t>(golden.const_data_ptr<float>()[i]);
    worst = std::max<std::int64_t>(worst, std::abs(std::int64_t{ours} - theirs));
  }
  CHECK(worst <= 1);
}

TEST_CASE("resize equals Pillow's bit for bit", "[image][golden]") {
  const int cases = golden_json("photos.json")["resizes"];
  REQUIRE(cases >= 20);
  for (int i = 0; i < cases; ++i) {
    const std::string name = c10::str(i / 10, i % 10);
    const at::Tensor target = golden_tensor("resize.safetensors", name + ".target");
    const at::Tensor source = golden_tensor("resize.safetensors", name + ".source");
    INFO(name << ": " << source.sizes() << " to " << target.sizes());
    const auto order = ResizePassOrder::kHorizontalFirst;
    CHECK(at::equal(resize_bicubic(source, target.size(0), target.size(1), order), target));
  }
}

TEST_CASE("resize has the pass order of either version of Pillow, bit for bit", "[image][golden]") {
  const std::string file = "resize_order.safetensors";
  const std::size_t cases = SafetensorsFile::open(golden_path(file)).entries().size() / 3;
  int differing = 0;
  for (std::size_t i = 0; i < cases; ++i) {
    const std::string name = c10::str(i / 10, i % 10);
    const at::Tensor source = golden_tensor(file, name + ".source");
    const at::Tensor pillow12 = golden_tensor(file, name + ".pillow12");
    const at::Tensor pillow13 = golden_tensor(file, name + ".pillow13");
    INFO(name << ": " << source.sizes() << " to " << pillow12.sizes());
    const std::int64_t height = pillow12.size(0), width = pillow12.size(1);
    CHECK(at::equal(resize_bicubic(source, height, width, ResizePassOrder::kHorizontalFirst),
                    pillow12));
    CHECK(at::equal(resize_bicubic(source, height, width, ResizePassOrder::kPillow13), pillow13));
    differing += at::equal(pillow12, pillow13) ? 0 : 1;
  }
  CHECK((cases == 33 && differing == 10));
}

TEST_CASE("files of every format decode to Pillow's pixels", "[image][golden]") {
  std::set<std::string> extensions;
  const nlohmann::json golden = golden_json("decode.json");
  for (const auto& file : golden["files"]) {
    const std::string path = file["file"];
    INFO(path);
    extensions.insert(path.substr(path.rfind('.')));
    const auto check = [&](const std::string& key, bool exif_rotation) {
      const at::Tensor expected = golden_tensor("decode.safetensors", file[key]);
      const at::Tensor image = read_image(golden_path(path), exif_rotation);
      REQUIRE(image.sizes() == expected.sizes());
      const int worst = image.to(at::kInt).sub(expected.to(at::kInt)).abs().max().item().toInt();
      CHECK(worst <= file["tolerance"].get<int>());
    };
    check("pixels", true);
    check(file.contains("pixels_unrotated") ? "pixels_unrotated" : "pixels", false);
  }
  CHECK(extensions == std::set<std::string>{".png", ".jpg", ".webp", ".bmp"});
}

TEST_CASE("broken files are refused by name", "[image][golden]") {
  const nlohmann::json refused = golden_json("decode.json")["refused"];
  REQUIRE(refused.size() >= 5);
  for (const std::string path : refused) {
    INFO(path);
    CHECK_THROWS_WITH(read_image(golden_path(path)),
                      Catch::Matchers::StartsWith("image " + golden_path(path) + ": "));
    CHECK_THROWS_AS(read_image(golden_path(path)), InputError);
  }
}

}  // namespace
}  // namespace libvar
