#include "convert/safetensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <vector>

#include "catch.h"
#include "golden_fixture.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;

namespace {

std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string bytes(8, '\0');
  bytes[0] = static_cast<char>(header.size() & 0xff);
  bytes[1] = static_cast<char>(header.size() >> 8);
  return bytes + header + std::string(data_bytes, 'x');
}

/// The error that a file of these bytes gives.
std::string error_of(const std::string& bytes) {
  const TemporaryFolder folder;
  write_bytes(folder / "model.safetensors", bytes);
  return message_of<ArchiveError>([&] { SafetensorsFile::open(folder / "model.safetensors"); });
}

std::string error_of_folder(const TemporaryFolder& folder) {
  return message_of<ArchiveError>([&] { open_checkpoint_tensors(folder.path()); });
}

}  // namespace

TEST_CASE("safetensors tensors are views that keep their file mapped", "[safetensors]") {
  const TemporaryFolder folder;
  const Tensors written{{"a", at::arange(6, at::kFloat).reshape({2, 3})},
                        {"b", at::arange(5, at::kFloat).to(at::kHalf)},
                        {"c", at::arange(4, at::kFloat).mul(-1.5).to(at::kBFloat16)},
                        {"empty", at::zeros({0, 7}, at::kFloat)},
                        {"scalar", at::full({}, 3.0F, at::kFloat)}};
  write_safetensors(folder / "x.safetensors", written);
  Tensors read;
  {
    const SafetensorsFile file = SafetensorsFile::open(folder / "x.safetensors");
    REQUIRE(file.entries().size() == written.size());
    for (const auto& [name, entry] : file.entries()) read.emplace(name, file.tensor(name));
  }
  std::filesystem::remove(folder / "x.safetensors");
  for (const auto& [name, tensor] : written) {
    INFO(name);
    REQUIRE(read.at(name).scalar_type() == tensor.scalar_type());
    REQUIRE(read.at(name).equal(tensor));
  }
}

TEST_CASE("safetensors tensors that are not aligned are copied", "[safetensors]") {
  const TemporaryFolder folder;
  write_safetensors(folder / "x.safetensors", {{"a", at::arange(3, at::kFloat).to(at::kHalf)},
                                               {"b", at::arange(5, at::kFloat)}});
  const SafetensorsFile file = SafetensorsFile::open(folder / "x.safetensors");
  REQUIRE(file.entries().at("b").begin % 4 == 2);
  REQUIRE(file.tensor("b").equal(at::arange(5, at::kFloat)));
}

TEST_CASE("safetensors of other types open, and are refused by name when they are asked for",
          "[safetensors]") {
  const TemporaryFolder folder;
  write_safetensors(folder / "x.safetensors", {{"position_ids", at::arange(5, at::kLong)}});
  const SafetensorsFile file = SafetensorsFile::open(folder / "x.safetensors");
  CHECK_THAT(message_of<ArchiveError>([&] { file.tensor("position_ids"); }),
             Contains("tensor position_ids: expected dtype F32, F16 or BF16, found I64"));
}

TEST_CASE("safetensors files that are damaged are refused", "[safetensors]") {
  CHECK_THAT(error_of(""), Contains("is truncated: 0 bytes"));
  CHECK_THAT(error_of("1234567"), Contains("is truncated: 7 bytes"));
  CHECK_THAT(error_of(std::string(16, '\xff')), Contains("is no safetensors file"));
  CHECK_THAT(error_of(file_of("{}", 0).substr(0, 9)),
             Contains("is truncated within its header of 2 bytes"));
  CHECK_THAT(error_of(file_of("{\"a\": ", 0)), Contains("safetensors header: is no JSON"));
  CHECK_THAT(error_of(file_of("[1, 2]", 0)), Contains("expected an object"));
  CHECK_THAT(error_of(file_of(R"({"a": 3})", 0)),
             Contains("tensor a: expected dtype, shape and data_offsets"));
  CHECK_THAT(
      error_of(file_of(R"({"a": {"dtype": "F12", "shape": [1], "data_offsets": [0, 4]}})", 4)),
      Contains("tensor a: dtype: expected a type of the safetensors format, found \"F12\""));
  CHECK_THAT(
      error_of(file_of(R"({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})", 4)),
      Contains("tensor a: shape: expected integers"));
  CHECK_THAT(
      error_of(file_of(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}})", 4)),
      Contains(
          "tensor a: the file is truncated: the tensor ends at byte 8 of the data, there are 4"));
  CHECK_THAT(
      error_of(file_of(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}})", 8)),
      Contains("tensor a: data_offsets: expected begin and end"));
  CHECK_THAT(
      error_of(file_of(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})", 4)),
      Contains("tensor a: expected as many bytes as shape [2] of F32 has, found 4"));
  CHECK_THAT(
      error_of(file_of(
          R"({"a": {"dtype": "F32", "shape": [2147483648, 2147483648, 4], "data_offsets": [0, 0]}})",
          4)),
      Contains("tensor a: expected as many bytes"));
  CHECK_THAT(error_of(file_of(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                                  "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})",
                              12)),
             Contains("tensors a and b lie in the same place"));
}

TEST_CASE("a checkpoint in shards names the shard or the tensor that is missing", "[safetensors]") {
  const TemporaryFolder folder;
  const Tensors tensors{{"a", at::zeros({2})}, {"b", at::zeros({3})}, {"c", at::zeros({4})}};
  write_weights(folder.path(), tensors, 3);
  REQUIRE(open_checkpoint_tensors(folder.path()).size() == 3);

  auto index = nlohmann::json::parse(read_bytes(folder / "model.safetensors.index.json"));
  index["weight_map"]["d"] = "model-00001-of-00003.safetensors";
  write_bytes(folder / "model.safetensors.index.json", index.dump());
  CHECK_THAT(error_of_folder(folder),
             Contains("model-00001-of-00003.safetensors: tensor d is missing"));

  index["weight_map"]["d"] = "../elsewhere.safetensors";
  write_bytes(folder / "model.safetensors.index.json", index.dump());
  CHECK_THAT(error_of_folder(folder),
             Contains("expected a file beside the index, found ../elsewhere.safetensors"));

  index["weight_map"].erase("d");
  write_bytes(folder / "model.safetensors.index.json", index.dump());
  std::filesystem::remove(folder / "model-00002-of-00003.safetensors");
  CHECK_THAT(error_of_folder(folder),
             Contains("model-00002-of-00003.safetensors: this shard of the checkpoint is missing"));
}

TEST_CASE("a checkpoint of pickles is refused with what to do", "[safetensors]") {
  const TemporaryFolder folder;
  CHECK_THAT(error_of_folder(folder), Contains("holds no weights"));
  write_bytes(folder / "pytorch_model-00001-of-00002.bin", "pickle");
  write_bytes(folder / "pytorch_model-00002-of-00002.bin", "pickle");
  CHECK_THAT(error_of_folder(folder),
             Contains("holds pickled weights only (pytorch_model-00001-of-00002.bin)") &&
                 Contains("save_pretrained(FOLDER, safe_serialization=True)"));
}
