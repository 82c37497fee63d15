#include "archive/archive.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <caffe2/serialize/inline_container.h>
#include <sys/resource.h>
#include <csignal>
#include <cstdlib>
#include <fstream>

#include "catch.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Contains;

namespace {

ArchiveManifest sample_manifest() {
  ArchiveManifest manifest;
  manifest.family = "llava";
  manifest.dtype = "float32";
  manifest.sink_dimensions = {{3, 7}, "a test"};
  return manifest;
}

CheckpointFiles sample_files() {
  return {{"config.json", "{}"}, {"libvar.json", to_json_text(sample_manifest())}, {"empty", ""}};
}

std::vector<TensorSource> sources_of(const Tensors& tensors) {
  std::vector<TensorSource> out;
  for (const auto& [name, tensor] : tensors) {
    out.push_back(
        {name, tensor.sizes().vec(), tensor.scalar_type(), [tensor = tensor] { return tensor; }});
  }
  return out;
}

Tensors sample_tensors() {
  return {{"tower.layers.0.weight", at::arange(6, at::kFloat).reshape({2, 3})},
          {"tower.layers.0.bias", at::arange(3, at::kFloat).to(at::kHalf)},
          {"tower.layers.1.weight", at::arange(4, at::kFloat).mul(-0.5).to(at::kBFloat16)},
          {"tower.class_embedding", at::zeros({0}, at::kFloat)},
          {"scale", at::full({}, 2.0F, at::kFloat)}};
}

std::string open_error(const std::filesystem::path& path) {
  return message_of<ArchiveError>([&] { Archive::open(path); });
}

/// The names in a folder, joined.
std::string listing(const TemporaryFolder& folder) {
  std::string out;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path())) {
    out += entry.path().filename().string() + " ";
  }
  return out;
}

/// A tiny model as an archive.
std::filesystem::path tiny_archive(const TemporaryFolder& folder) {
  const TemporaryFolder checkpoint;
  TinyCheckpoint().write(checkpoint.path());
  convert_checkpoint(checkpoint.path(), folder / "tiny.pt");
  return folder / "tiny.pt";
}

/// An archive with the given records.
void write_records(const std::filesystem::path& path, const CheckpointFiles& records) {
  caffe2::serialize::PyTorchStreamWriter writer(path.string());
  for (const auto& [name, text] : records) writer.writeRecord(name, text.data(), text.size());
  writer.writeEndOfFile();
}

/// Changes one byte of what stands at the first `text` in a file.
void flip_at(const std::filesystem::path& path, const std::string& text) {
  std::string bytes = read_bytes(path);
  const std::size_t at = bytes.find(text);
  REQUIRE(at != std::string::npos);
  bytes[at + text.size() / 2] = static_cast<char>(bytes[at + text.size() / 2] ^ 0x20);
  write_bytes(path, bytes);
}

/// Bytes of a tensor.
std::string bytes_of(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

/// Sets the largest size of a file that this process may write, until the end of a scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before_) == 0);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &limit) == 0);
  }

  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_{};
};

}  // namespace

TEST_CASE("an archive gives back tensors and files as they were written", "[archive]") {
  const TemporaryFolder folder;
  std::vector<std::pair<std::int64_t, std::int64_t>> progress;
  write_archive(folder / "a.pt", sources_of(sample_tensors()), sample_files(),
                [&](std::int64_t done, std::int64_t total) { progress.emplace_back(done, total); });
  REQUIRE(listing(folder) == "a.pt ");
  REQUIRE(progress.front() == std::make_pair<std::int64_t, std::int64_t>(0, 42));
  REQUIRE(progress.back() == std::make_pair<std::int64_t, std::int64_t>(42, 42));

  std::map<std::string, at::Tensor> tensors;
  {
    const Archive archive = Archive::open(folder / "a.pt");
    REQUIRE(archive.files() == sample_files());
    REQUIRE(archive.manifest().sink_dimensions.dims == std::vector<std::int64_t>{3, 7});
    tensors = archive.tensors();
  }
  std::filesystem::remove(folder / "a.pt");
  REQUIRE(tensors.size() == 5);
  for (const auto& [name, tensor] : sample_tensors()) {
    INFO(name);
    REQUIRE(tensors.at(name).scalar_type() == tensor.scalar_type());
    REQUIRE(tensors.at(name).equal(tensor));
    if (tensor.numel() > 0)
      REQUIRE(reinterpret_cast<std::uintptr_t>(tensors.at(name).const_data_ptr()) % 64 == 0);
  }
}

TEST_CASE("libvar.json comes back as it was written", "[archive]") {
  ArchiveManifest manifest = sample_manifest();
  manifest.var_defaults.first_layer = 1;
  manifest.var_defaults.rho = 0.3F;
  const std::string text = to_json_text(manifest);
  CHECK_THAT(text, Contains("\"rho\": 0.3,") && Contains("\"first_layer\": 1"));
  const ArchiveManifest read = parse_manifest(text, "x.pt");
  REQUIRE(read.var_defaults == manifest.var_defaults);
  REQUIRE(read.sink_dimensions.source == "a test");
  REQUIRE(parse_manifest(to_json_text(sample_manifest()), "x.pt").var_defaults == VarParams{});

  const auto error = [&](const char* key, const nlohmann::json& value) {
    nlohmann::json json = nlohmann::json::parse(text);
    json[nlohmann::json::json_pointer(key)] = value;
    return message_of<ArchiveError>([&] { parse_manifest(json.dump(), "x.pt"); });
  };
  CHECK_THAT(error("/format_version", 2),
             Contains("format version 2, this library reads version 1"));
  CHECK_THAT(
      error("/dtype", "int8"),
      Contains("x.pt: libvar.json: dtype: expected float32, bfloat16 or float16, found \"int8\""));
  CHECK_THAT(error("/family", nullptr), Contains("x.pt: libvar.json: family is missing"));
  CHECK_THAT(error("/sink_dimensions/dims", "x"),
             Contains("sink_dimensions: dims: expected an integer"));
  CHECK_THAT(error("/sink_dimensions/dims", {1, 2, 3, 4, 5, 6, 7, 8, 9}),
             Contains("dims: expected at most 8 dimensions"));
  CHECK_THAT(error("/var_defaults/p", 2),
             Contains("x.pt: libvar.json: var_defaults: ") && Contains("p"));
  CHECK_THAT(message_of<ArchiveError>([&] { parse_manifest("{", "x.pt"); }),
             Contains("x.pt: libvar.json: is no JSON"));
}

TEST_CASE("what is no archive of this library is refused in one clear line each", "[archive]") {
  const TemporaryFolder folder;
  CHECK_THAT(open_error(folder / "missing.pt"),
             Contains("missing.pt: can't be opened: No such file"));
  CHECK_THAT(open_error(folder.path()), Contains("is a directory, expected a file"));
  write_bytes(folder / "text.pt", "just text");
  CHECK_THAT(open_error(folder / "text.pt"),
             Contains("is not a TorchScript archive") && Contains("var convert"));
  write_bytes(folder / "empty.pt", "");
  CHECK_THAT(open_error(folder / "empty.pt"), Contains("is not a TorchScript archive"));

  write_records(folder / "none.pt", {{"data.pkl", ""}, {"extra/config.json", "{}"}});
  CHECK_THAT(open_error(folder / "none.pt"),
             Contains("is not a libvar archive") && Contains("var convert"));
  ArchiveManifest later = sample_manifest();
  later.format_version = 2;
  write_records(folder / "later.pt",
                {{"data.pkl", ""}, {"extra/libvar.json", to_json_text(later)}});
  CHECK_THAT(open_error(folder / "later.pt"), Contains("is an archive of format version 2"));
  write_records(folder / "nopickle.pt", {{"extra/libvar.json", to_json_text(sample_manifest())}});
  CHECK_THAT(open_error(folder / "nopickle.pt"), Contains("is not a libvar archive"));
}

TEST_CASE("an archive with code is refused before anything else", "[archive]") {
  const TemporaryFolder folder;
  // A scripted model as torch.jit.save writes it; a broken data.pkl shows that it isn't looked at.
  const std::string scripted =
      "class A(Module):\n  __parameters__ = []\n  def forward(self,\n    x: Tensor) -> Tensor:\n   "
      " return x\n";
  for (const char* record : {"code/__torch__.py", "code/__torch__/torch/nn/modules/linear.py"}) {
    write_records(folder / "code.pt", {{record, scripted}, {"data.pkl", "garbage"}});
    CHECK_THAT(open_error(folder / "code.pt"),
               Contains(std::string("holds code (") + record + ")") && Contains("var convert"));
  }
  write_records(folder / "code.pt",
                {{"code/__torch__.py", "class A(Module):\n  default : Tensor\n  undef : Tensor\n"},
                 {"data.pkl", "x"}});
  CHECK_THAT(open_error(folder / "code.pt"), Contains("is not a libvar archive"));
}

TEST_CASE("a truncated archive is refused wherever it ends", "[archive]") {
  const TemporaryFolder folder;
  const std::string bytes = read_bytes(tiny_archive(folder));
  for (const std::size_t size :
       {bytes.size() - 1, bytes.size() - 200, bytes.size() / 2, std::size_t{100}, std::size_t{4}}) {
    write_bytes(folder / "cut.pt", bytes.substr(0, size));
    INFO(size);
    CHECK_THAT(open_error(folder / "cut.pt"), Contains("cut.pt: is truncated or damaged"));
    CHECK_THAT(message_of<ArchiveError>([&] { verify_archive(folder / "cut.pt"); }),
               Contains("cut.pt: is truncated or damaged"));
  }
}

TEST_CASE("a tensor must lie within its record", "[archive]") {
  const TemporaryFolder folder;
  write_archive(folder / "a.pt", sources_of({{"w", at::zeros({4})}}), sample_files());
  std::string bytes = read_bytes(folder / "a.pt");
  // In data.pkl: storage of 4, offset 0, sizes (4), strides (1).
  const std::string sizes("(K\x04t(K\x01t", 8);
  const std::size_t at = bytes.find(sizes);
  REQUIRE(at != std::string::npos);
  bytes[at + 2] = 5;
  write_bytes(folder / "b.pt", bytes);
  CHECK_THAT(open_error(folder / "b.pt"),
             Contains("tensor w: record data/0 has 16 bytes, too few for it"));
  bytes[at + 2] = 4;
  bytes[at + 6] = 2;
  write_bytes(folder / "b.pt", bytes);
  CHECK_THAT(open_error(folder / "b.pt"), Contains("tensor w: expected rows one behind the other"));
}

TEST_CASE("a full disk is an error that leaves no file", "[archive]") {
  const TemporaryFolder folder;
  const auto tensors = sources_of({{"a", at::zeros({1 << 20})}, {"b", at::zeros({1 << 20})}});
  write_bytes(folder / "before.pt", "what was there");
  std::string message;
  for (const rlim_t bytes : {rlim_t{0}, rlim_t{1} << 10, rlim_t{6} << 20, rlim_t{8} << 20}) {
    const FileSizeLimit limit(bytes);
    message = message_of<ResourceError>(
        [&] { write_archive(folder / "before.pt", tensors, sample_files()); });
    CHECK_THAT(message, Contains("before.pt: can't be written past") && Contains("File too large"));
  }
  REQUIRE(listing(folder) == "before.pt ");
  REQUIRE(read_bytes(folder / "before.pt") == "what was there");
}

TEST_CASE("an archive that can't be finished leaves no file", "[archive]") {
  const TemporaryFolder folder;
  auto tensors = sources_of({{"a", at::zeros({1000})}, {"b", at::zeros({1000})}});
  tensors[1].read = []() -> at::Tensor { throw ArchiveError("tensor b can't be read"); };
  CHECK(message_of<ArchiveError>([&] {
          write_archive(folder / "a.pt", tensors, sample_files());
        }) == "tensor b can't be read");
  tensors = sources_of({{"a", at::zeros({1000})}, {"b", at::zeros({1000})}});
  const auto cancel = [](std::int64_t done, std::int64_t) {
    if (done > 0) throw InputError("cancelled");
  };
  CHECK(message_of<InputError>([&] {
          write_archive(folder / "a.pt", tensors, sample_files(), cancel);
        }) == "cancelled");
  CHECK(listing(folder).empty());
  CHECK_THAT(message_of<ArchiveError>(
                 [&] { write_archive(folder / "no/such/a.pt", tensors, sample_files()); }),
             Contains("can't be written: there is no directory"));
  CHECK_THAT(
      message_of<ArchiveError>([&] { write_archive(folder.path(), tensors, sample_files()); }),
      Contains("can't be written: is a directory"));
}

TEST_CASE("verify names the record that is damaged", "[archive]") {
  const TemporaryFolder folder;
  const std::filesystem::path path = tiny_archive(folder);
  std::int64_t last = 0, total = 0;
  verify_archive(path, [&](std::int64_t done, std::int64_t all) { last = done, total = all; });
  REQUIRE((last == total && total > 0));
  const std::string intact = read_bytes(path);
  const auto error = [&] { return message_of<ArchiveError>([&] { verify_archive(path); }); };

  const auto tensors = Archive::open(path).tensors();
  flip_at(path, bytes_of(tensors.at("language_model.model.layers.1.mlp.down_proj.weight").clone()));
  CHECK_THAT(error(), Contains("record archive/data/") && Contains("is damaged"));
  write_bytes(path, intact);
  flip_at(path, "_rebuild_tensor_v2");
  CHECK_THAT(error(), Contains("record archive/data.pkl is damaged"));
  write_bytes(path, intact);
  flip_at(path, "clip_vision_model");
  CHECK_THAT(error(), Contains("record archive/extra/config.json is damaged"));
  write_bytes(path, intact);
  CHECK(error().empty());
}

TEST_CASE("verify compares the tensors with the configuration", "[archive]") {
  const TemporaryFolder folder;
  const Archive intact = Archive::open(tiny_archive(folder));
  Tensors tensors(intact.tensors().begin(), intact.tensors().end());
  const std::string name = "multi_modal_projector.linear_2.weight";
  const auto error = [&](const Tensors& changed) {
    write_archive(folder / "changed.pt", sources_of(changed), intact.files());
    return message_of<ArchiveError>([&] { verify_archive(folder / "changed.pt"); });
  };
  CHECK(error(tensors).empty());
  Tensors changed = tensors;
  changed.erase(name);
  CHECK_THAT(error(changed), Contains("changed.pt: tensor " + name + " is missing"));
  changed[name] = at::zeros({16, 17});
  CHECK_THAT(error(changed),
             Contains("tensor " + name + ": expected shape [16, 16], found [16, 17]"));
  changed[name] = tensors[name].to(at::kHalf);
  CHECK_THAT(error(changed), Contains("tensor " + name + ": expected float32, found float16"));
}

TEST_CASE("torch.jit.load of Python reads names and values", "[archive][python]") {
  const std::string python = LIBVAR_PYTHON;
  if (python.empty()) {
    WARN(
        "skipped: configure with -DLIBVAR_PYTHON=... to read an archive with Python's "
        "torch.jit.load");
    return;
  }
  const TemporaryFolder folder;
  const std::filesystem::path path = tiny_archive(folder);
  write_bytes(folder / "read.py", R"(
import json, sys, torch
extra = {"libvar.json": "", "config.json": ""}
model = torch.jit.load(sys.argv[1], _extra_files=extra)
json.loads(extra["libvar.json"]), json.loads(extra["config.json"])
state = {name: value.detach().clone() for name, value in model.state_dict().items()}
assert set(state) == set(dict(model.named_parameters()))
torch.jit.save(model, sys.argv[3], _extra_files=extra)
with open(sys.argv[2], "w") as out:
    for name, value in state.items():
        print(name, str(value.dtype), list(value.shape), value.double().flatten()[:5].tolist(), value.double().sum().item(), file=out)
)");
  const std::string command = "'" + python + "' -W ignore " + (folder / "read.py").string() + " " +
                              path.string() + " " + (folder / "out.txt").string() + " " +
                              (folder / "again.pt").string();
  REQUIRE(std::system(command.c_str()) == 0);
  const Archive archive = Archive::open(path);
  std::map<std::string, std::string> lines;
  std::ifstream file(folder / "out.txt");
  for (std::string line; std::getline(file, line);)
    lines.emplace(line.substr(0, line.find(' ')), line);
  REQUIRE(lines.size() == archive.tensors().size());
  for (const auto& [name, tensor] : archive.tensors()) {
    INFO(lines[name]);
    const at::Tensor values = tensor.to(at::kDouble).flatten();
    const std::string& line = lines.at(name);
    REQUIRE_THAT(line, Contains("torch.float32"));
    REQUIRE(std::stod(line.substr(line.rfind(' '))) == values.sum().item<double>());
    const std::string list = line.substr(line.rfind('['), line.rfind(']') - line.rfind('[') + 1);
    const auto first = nlohmann::json::parse(list).get<std::vector<double>>();
    for (std::size_t i = 0; i < first.size(); ++i)
      REQUIRE(first[i] == values[static_cast<std::int64_t>(i)].item<double>());
  }
  // What Python's torch.jit.save writes from it is an archive too.
  const Archive again = Archive::open(folder / "again.pt");
  REQUIRE(again.tensors().size() == archive.tensors().size());
  for (const auto& [name, tensor] : archive.tensors())
    REQUIRE(again.tensors().at(name).equal(tensor));
}
