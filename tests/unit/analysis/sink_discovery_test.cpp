#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <stdexcept>

#include "analysis/massive_dimensions.h"
#include "archive/archive.h"
#include "catch.h"
#include "golden_fixture.h"
#include "libvar/analysis.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "temporary_folder.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Matchers::Contains;

namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr std::int64_t kBos = 1;

std::shared_ptr<const Model> load(const std::filesystem::path& path) {
  return Model::load(path, {.device = "cpu", .dtype = "fp32"});
}

std::filesystem::path demo_path() {
  return std::filesystem::path(LIBVAR_SOURCE_DIR) / "examples/demo_model/demo.pt";
}

Request demo_question() {
  Request request;
  request.images = {demo_path().parent_path() / "images/scene_1.png"};
  request.question = "How many objects are in the image?";
  return request;
}

/// The golden mha model with these values in the embedding of BOS.
std::shared_ptr<const Model> planted(const std::map<std::int64_t, float>& values) {
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "hf", golden_case("mha"));
  Tensors tensors = golden_weights(golden_case("mha"));
  for (const auto& [dim, value] : values)
    tensors.at("language_model.model.embed_tokens.weight")[kBos][dim].fill_(value);
  write_weights(folder / "hf", tensors);
  convert_checkpoint(folder / "hf", folder / "model.pt");
  return load(folder / "model.pt");
}

/// Takes from this thread root's right to write where permissions forbid it; others have none.
class WithoutOverride {
 public:
  WithoutOverride() {
    call(SYS_capget, sets_);
    auto without = sets_;
    without[0].effective &= ~(1U << CAP_DAC_OVERRIDE);
    call(SYS_capset, without);
  }

  ~WithoutOverride() { ::syscall(SYS_capset, &header_, sets_.data()); }

  WithoutOverride(const WithoutOverride&) = delete;
  WithoutOverride& operator=(const WithoutOverride&) = delete;

 private:
  using Sets = std::array<__user_cap_data_struct, _LINUX_CAPABILITY_U32S_3>;

  void call(long number, Sets& sets) {
    if (::syscall(number, &header_, sets.data()) != 0) throw std::runtime_error("capabilities");
  }

  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  Sets sets_{};
};

/// What is found when every layer of one prompt has this hidden state.
std::vector<std::int64_t> found_in(const at::Tensor& hidden, std::int64_t layers = 4) {
  MassiveDimensions massive(layers);
  for (std::int64_t i = 0; i < layers; ++i) massive.add(i, hidden);
  std::vector<std::int64_t> out;
  for (const FoundSinkDimension& found : massive.found()) out.push_back(found.dimension);
  return out;
}

/// [1, 3, 64] of ones, with values in the first token.
at::Tensor state(const std::map<std::int64_t, float>& values, std::int64_t token = 0) {
  at::Tensor out = at::ones({1, 3, 64});
  for (const auto& [dim, value] : values) out[0][token][dim].fill_(value);
  return out;
}

using Dims = std::vector<std::int64_t>;

}  // namespace

TEST_CASE("a dimension is massive from 1000 times the median of the layer on", "[sinks]") {
  CHECK(found_in(state({{7, 1000.0F}})) == Dims{7});
  CHECK(found_in(state({{7, -1000.0F}})) == Dims{7});
  CHECK(found_in(state({{7, 999.9F}})).empty());
  CHECK(found_in(state({{7, 5000.0F}}, 1)).empty());  // not the first token
  CHECK(found_in(state({{7, 5000.0F}, {63, -7000.0F}})) == Dims{63, 7});
  for (const std::int64_t layers : {1, 2, 3, 5, 32})
    CHECK(found_in(state({{7, 2000.0F}}), layers) == Dims{7});
}

TEST_CASE("at most eight dimensions are found, the largest", "[sinks]") {
  std::map<std::int64_t, float> values;
  for (std::int64_t d = 0; d < 10; ++d) values[d] = 2000.0F + static_cast<float>(d);
  CHECK(found_in(state(values)) == Dims{9, 8, 7, 6, 5, 4, 3, 2});
}

TEST_CASE("what is not finite neither counts nor disturbs", "[sinks]") {
  for (const float odd : {kNan, kInf, -kInf}) {
    CHECK(found_in(state({{3, odd}})).empty());
    CHECK(found_in(state({{3, odd}, {7, 2000.0F}})) == Dims{7});
    CHECK(found_in(at::full({1, 3, 64}, odd)).empty());
  }
  CHECK(found_in(at::full({1, 3, 64}, 0.0)).empty());
}

TEST_CASE("most of the middle layers and most prompts decide", "[sinks]") {
  const at::Tensor with = state({{7, 2000.0F}}), without = state({});
  const auto found = [](const std::vector<std::vector<at::Tensor>>& prompts) {
    MassiveDimensions massive(static_cast<std::int64_t>(prompts.front().size()));
    for (const auto& layers : prompts) {
      for (std::size_t i = 0; i < layers.size(); ++i)
        massive.add(static_cast<std::int64_t>(i), layers[i]);
    }
    return massive.found();
  };
  CHECK(MassiveDimensions(4).middle_layers() == std::pair<std::int64_t, std::int64_t>{1, 3});
  CHECK(MassiveDimensions(32).middle_layers() == std::pair<std::int64_t, std::int64_t>{8, 24});
  const auto middle = found({{without, with, with, without}});
  REQUIRE(middle.size() == 1);
  CHECK(middle[0].layers == Dims{1, 2});
  CHECK(middle[0].times_median == Approx(2000.0));
  CHECK(found({{with, with, without, with}}).empty());  // half of the middle layers is not most
  const std::vector<at::Tensor> all{with, with, with, with},
      none{without, without, without, without};
  CHECK(found({all, none}).empty());
  CHECK(found({all, none, all}).size() == 1);
}

TEST_CASE("discovery finds the planted dimension of the demo model", "[sinks]") {
  const auto model = load(demo_path());
  const SinkDiscovery text = discover_sink_dimensions(*model);
  CHECK(text.dims() == Dims{137});
  CHECK(text.visual_sink_share.empty());
  CHECK(text.image_prompts == 0);
  std::vector<std::int64_t> progress;
  const SinkDiscovery found = discover_sink_dimensions(*model, demo_question(), 20.0F,
                                                       [&](std::int64_t done, std::int64_t total) {
                                                         CHECK(total == 12);
                                                         progress.push_back(done);
                                                       });
  CHECK(progress.front() == 0);
  CHECK(progress.back() == 12);
  CHECK(found.dims() == Dims{137});
  CHECK(found.dimensions[0].layers == Dims{0, 1, 2, 3});
  CHECK(found.dimensions[0].times_median > 1000.0);
  REQUIRE(found.first_token_phi.size() == 4);
  for (const double phi : found.first_token_phi) CHECK(phi == Approx(22.38).margin(0.01));
  // The picture's sinks as an answer reports them.
  const Answer answer = Session(model).ask(demo_question());
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(found.visual_sink_share[i] ==
          Approx(static_cast<double>(answer.var.visual_sinks[i].size()) / 36.0));
  }
  CHECK_THAT(found.source, Contains("layers 1 to 2") && Contains("1 with an image"));
}

TEST_CASE("discovery finds one, two and three planted dimensions, and none where none is",
          "[sinks]") {
  const std::vector<std::map<std::int64_t, float>> plants{
      {}, {{29, 1e4F}}, {{29, 1e4F}, {301, -2e4F}}, {{29, 1e4F}, {301, -2e4F}, {511, 3e4F}}};
  const std::vector<Dims> expected{{}, {29}, {301, 29}, {511, 301, 29}};
  for (std::size_t i = 0; i < plants.size(); ++i) {
    const SinkDiscovery found = discover_sink_dimensions(*planted(plants[i]));
    CHECK(found.dims() == expected[i]);
    CHECK(found.first_token_phi.empty() == expected[i].empty());
  }
  CHECK(discover_sink_dimensions(*planted({{29, kNan}})).dims().empty());
}

TEST_CASE("a model takes other sink dimensions and shares its weights", "[sinks]") {
  const auto model = load(demo_path());
  const auto other = model->with_sink_dimensions({3, 401}, "a test");
  CHECK(other->sink_dimensions() == Dims{3, 401});
  CHECK(model->sink_dimensions() == Dims{137});
  const Answer before = Session(model).ask(demo_question());
  const Answer changed = Session(other).ask(demo_question());
  CHECK(changed.var.visual_sinks[1] != before.var.visual_sinks[1]);
  const Answer again = Session(other->with_sink_dimensions({137}, "a test")).ask(demo_question());
  CHECK(again.tokens == before.tokens);
  CHECK(again.var.visual_sinks == before.var.visual_sinks);
  CHECK(again.var.selected_rows == before.var.selected_rows);
  for (const Dims& wrong :
       {Dims{}, Dims{512}, Dims{-1}, Dims{1, 1}, Dims{0, 1, 2, 3, 4, 5, 6, 7, 8}})
    CHECK_THROWS_AS(model->with_sink_dimensions(wrong, "a test"), ConfigError);
}

TEST_CASE("saved sink dimensions change libvar.json and nothing else", "[sinks][archive]") {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "demo.pt", link = folder / "link.pt";
  std::filesystem::copy_file(demo_path(), file);
  std::filesystem::create_symlink(file, link);
  REQUIRE(::chmod(file.c_str(), 0640) == 0);
  const auto old_model = load(file);
  const Answer before = Session(old_model).ask(demo_question());
  save_sink_dimensions(link, {137, 401}, "a test");
  CHECK(std::filesystem::is_symlink(link));

  struct stat status {};

  REQUIRE(::stat(file.c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0640);
  verify_archive(file);
  const ArchiveInfo info = read_archive_info(file);
  CHECK(info.sink_dims == Dims{137, 401});
  CHECK(info.sink_dims_source == "a test");
  CHECK(info.var_defaults.first_layer == 1);
  {
    const Archive was = Archive::open(demo_path()), is = Archive::open(file);
    REQUIRE(was.files().size() == is.files().size());
    for (const auto& [name, text] : was.files()) {
      if (name != "libvar.json") CHECK(is.files().at(name) == text);
    }
    REQUIRE(was.tensors().size() == is.tensors().size());
    for (const auto& [name, tensor] : was.tensors()) {
      CHECK(is.tensors().at(name).scalar_type() == tensor.scalar_type());
      CHECK(is.tensors().at(name).equal(tensor));
    }
  }
  // The model that was loaded before goes on with the old file.
  CHECK(Session(old_model).ask(demo_question()).tokens == before.tokens);
  // With the old values the file is the old one, byte for byte.
  const ArchiveInfo original = read_archive_info(demo_path());
  CHECK(original.content_id.size() == 40);
  CHECK(info.content_id != original.content_id);
  save_sink_dimensions(file, original.sink_dims, original.sink_dims_source);
  CHECK(read_bytes(file) == read_bytes(demo_path()));
  CHECK(Session(load(file)).ask(demo_question()).tokens == before.tokens);
}

TEST_CASE("an archive that can't be rewritten stays as it was", "[sinks][archive]") {
  const TemporaryFolder folder;
  const std::filesystem::path file = folder / "demo.pt";
  std::filesystem::copy_file(demo_path(), file);
  const auto check_kept = [&] {
    CHECK(read_bytes(file) == read_bytes(demo_path()));
    CHECK(std::distance(std::filesystem::directory_iterator(folder.path()), {}) == 1);
  };
  for (const Dims& wrong : {Dims{}, Dims{512}, Dims{2, 2}})
    CHECK_THROWS_AS(save_sink_dimensions(file, wrong, "a test"), ConfigError);
  CHECK_THROWS_AS(save_sink_dimensions(folder / "none.pt", {1}, "a test"), ArchiveError);
  CHECK_THROWS_AS(save_sink_dimensions(file, {1}, "a test",
                                       [](std::int64_t done, std::int64_t) {
                                         if (done > 0) throw InputError("stop");
                                       }),
                  InputError);
  check_kept();
  REQUIRE(::chmod(folder.path().c_str(), 0500) == 0);
  {
    const WithoutOverride as_owner;
    CHECK_THROWS_WITH(save_sink_dimensions(file, {1}, "a test"),
                      Contains(file.string() + ": can't be written: Permission denied"));
  }
  REQUIRE(::chmod(folder.path().c_str(), 0700) == 0);
  check_kept();
}
