// Archives with int8 weights: what is stored, what is refused.

#include "convert/quantize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <limits>

#include "archive/archive.h"
#include "catch.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;

namespace {

const std::string kQuery = "language_model.model.layers.0.self_attn.q_proj.weight";

Archive quantized_archive(const TemporaryFolder& folder, const TinyCheckpoint& checkpoint,
                          const std::string& dtype = "auto") {
  checkpoint.write(folder / "checkpoint");
  ConvertOptions options;
  options.dtype = dtype;
  options.quantize = "int8";
  options.sink_dims = {3};
  convert_checkpoint(folder / "checkpoint", folder / "int8.pt", options);
  return Archive::open(folder / "int8.pt");
}

bool is_quantizable(const std::string& name) {
  return name.find("language_model.model.layers.") == 0 &&
         name.find("_proj.weight") + 12 == name.size();
}

}  // namespace

TEST_CASE("quantized rows are the nearest multiples of their scales", "[quantize]") {
  const at::Tensor matrix =
      at::tensor({254.0f, 3.1f, -2.9f, 1.0f, 0.0f, 0.0f, 0.0f, 0.0f, -0.5f, 0.25f, 0.125f, 0.0f})
          .view({3, 4});
  const at::Tensor scales = row_scales(matrix), rows = quantize_rows(matrix);
  CHECK(scales.equal(at::tensor({2.0f, 0.0f, 0.5f / 127.0f})));
  // 1 / 2 lies in the middle: ties to even.
  CHECK(rows.equal(at::tensor({127, 2, -1, 0, 0, 0, 0, 0, -127, 64, 32, 0}, at::kLong)
                       .view({3, 4})
                       .to(at::kChar)));
  const float tiny = std::numeric_limits<float>::denorm_min();
  const at::Tensor subnormal = quantize_rows(at::full({1, 2}, 190 * tiny));
  CHECK(subnormal.equal(at::full({1, 2}, 127, at::kChar)));
}

TEST_CASE("convert --quantize int8 keeps every weight within half a scale", "[quantize]") {
  for (const at::ScalarType type : {at::kFloat, at::kHalf, at::kBFloat16}) {
    const TemporaryFolder folder;
    TinyCheckpoint checkpoint(type);
    checkpoint.tensors[kQuery][2].zero_();
    const Archive archive = quantized_archive(folder, checkpoint, "bf16");
    CHECK(archive.manifest().quantization == "int8");
    int quantized = 0;
    for (const auto& [name, tensor] : checkpoint.tensors) {
      INFO(name);
      const at::Tensor& stored = archive.tensors().at(name);
      if (!is_quantizable(name)) {
        CHECK(stored.equal(tensor.to(at::kBFloat16)));
        CHECK(archive.tensors().count(name + "_scale") == 0);
        continue;
      }
      ++quantized;
      const at::Tensor scale = archive.tensors().at(name + "_scale");
      REQUIRE((stored.scalar_type() == at::kChar && scale.scalar_type() == at::kFloat));
      REQUIRE((stored.sizes() == tensor.sizes() && scale.sizes() == tensor.sizes().slice(0, 1)));
      const at::Tensor wide = tensor.to(at::kDouble), s = scale.to(at::kDouble).unsqueeze(1);
      CHECK(((wide.abs().amax(1, true) / 127 - s).abs() <= s * 1e-7).all().item<bool>());
      CHECK(((wide - stored.to(at::kDouble) * s).abs() <= s * 0.50001).all().item<bool>());
      CHECK(stored.to(at::kLong).abs().max().item<std::int64_t>() == 127);
    }
    CHECK(quantized == 2 * 7);
    CHECK(archive.tensors().size() == checkpoint.tensors.size() + 2 * 7);
    verify_archive(folder / "int8.pt");
    const ArchiveInfo info = read_archive_info(folder / "int8.pt");
    CHECK((info.quantization == "int8" && info.dtype == "bfloat16"));
    std::int64_t parameters = 0;
    for (const auto& [name, tensor] : checkpoint.tensors) parameters += tensor.numel();
    CHECK(info.num_parameters == parameters);
  }
}

TEST_CASE("other sink dimensions leave a quantized archive quantized", "[quantize]") {
  const TemporaryFolder folder;
  const Archive before = quantized_archive(folder, TinyCheckpoint());
  save_sink_dimensions(folder / "int8.pt", {5, 7}, "by hand");
  const Archive after = Archive::open(folder / "int8.pt");
  CHECK(after.manifest().quantization == "int8");
  CHECK(after.manifest().sink_dimensions.dims == std::vector<std::int64_t>{5, 7});
  CHECK(after.tensors().at(kQuery).equal(before.tensors().at(kQuery)));
  CHECK(after.tensors().at(kQuery + "_scale").equal(before.tensors().at(kQuery + "_scale")));
}

TEST_CASE("what can't be quantized is refused in one clear line each", "[quantize]") {
  const TemporaryFolder folder;
  TinyCheckpoint checkpoint;
  ConvertOptions options;
  options.quantize = "int4";
  const auto error = [&](auto type) {
    std::filesystem::remove_all(folder / "checkpoint");
    checkpoint.write(folder / "checkpoint");
    const std::string message = message_of<decltype(type)>(
        [&] { convert_checkpoint(folder / "checkpoint", folder / "out.pt", options); });
    CHECK_FALSE(std::filesystem::exists(folder / "out.pt"));
    return message;
  };
  CHECK_THAT(error(ConfigError("")), Contains("quantize: expected int8, found int4"));
  options.quantize = "int8";
  checkpoint.tensors[kQuery][1][1].fill_(std::nan(""));
  CHECK_THAT(error(ArchiveError("")),
             Contains("model.safetensors: tensor " + kQuery +
                      ": has values that are not finite, so it can't be quantized"));
}

TEST_CASE("a quantized archive is compared with its configuration", "[quantize]") {
  const TemporaryFolder folder;
  const Archive intact = quantized_archive(folder, TinyCheckpoint());
  const auto error = [&](const std::string& name, const at::Tensor& tensor) {
    std::vector<TensorSource> sources;
    for (const auto& [own, value] : intact.tensors()) {
      const at::Tensor& taken = own == name ? tensor : value;
      if (!taken.defined()) continue;
      sources.push_back(
          {own, taken.sizes().vec(), taken.scalar_type(), [taken] { return taken.contiguous(); }});
    }
    write_archive(folder / "changed.pt", sources, intact.files());
    return message_of<ArchiveError>([&] { verify_archive(folder / "changed.pt"); });
  };
  const std::string scale = kQuery + "_scale";
  CHECK(error("", {}).empty());
  CHECK_THAT(error(scale, {}), Contains("changed.pt: tensor " + scale + " is missing"));
  CHECK_THAT(error(scale, at::zeros({15})),
             Contains("tensor " + scale + ": expected shape [16], found [15]"));
  CHECK_THAT(error(scale, at::zeros({16}, at::kHalf)),
             Contains("tensor " + scale + ": expected float32, found float16"));
  CHECK_THAT(error(kQuery, at::zeros({16, 16})),
             Contains("tensor " + kQuery + ": expected int8, found float32"));
  const std::string norm = "language_model.model.norm.weight";
  CHECK_THAT(error(norm, at::zeros({16}, at::kChar)),
             Contains("tensor " + norm + ": expected float32, found int8"));
  std::string text = intact.files().at("libvar.json");
  text.replace(text.find("\"int8\""), 6, "\"int4\"");
  CHECK_THAT(message_of<ArchiveError>([&] { parse_manifest(text, "a.pt"); }),
             Contains("a.pt: libvar.json: quantization: expected int8, found \"int4\""));
}
