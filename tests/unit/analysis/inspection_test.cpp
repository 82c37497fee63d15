// What attention does inside: against eager probabilities of transformers' models
// (tests/golden/inspection.safetensors), and where visual tokens lie in pictures.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "convert/safetensors.h"
#include "generate/prepare_prompt.h"
#include "golden_fixture.h"
#include "libvar/error.h"
#include "libvar/inspection.h"
#include "libvar/knockout.h"
#include "loaded_model.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

constexpr double kBar = 1e-4;
constexpr std::int64_t kRowStride = 5;  // of the stored attention

struct Place {
  std::string name, run;

  const json& entry() const { return family_run(family_case(name), run); }

  at::Tensor golden(const std::string& key) const {
    static const SafetensorsFile file =
        SafetensorsFile::open(golden_folder() / "inspection.safetensors");
    return file.tensor(name + "/" + run + "/" + key);
  }
};

/// The runs of tests/golden/inspection.safetensors.
Place golden_place() {
  return GENERATE(Place{"vila1_inside", "on"}, Place{"qwen_flat", "two_images"},
                  Place{"internvl_small", "on"});
}

double largest_difference(const at::Tensor& actual, const at::Tensor& expected) {
  if (actual.sizes() != expected.sizes()) return std::nan("");
  return (actual.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor every_fifth(const at::Tensor& tensor, std::int64_t dimension) {
  return tensor.slice(dimension, 0, {}, kRowStride);
}

}  // namespace

TEST_CASE("an inspection equals what eager attention shows", "[inspection][golden]") {
  const Place place = golden_place();
  CAPTURE(place.name);
  const std::shared_ptr<const Model> model = load_family_case(family_case(place.name));
  InspectOptions options;
  options.head_layers = {1};
  options.magnitude_positions = {0, 40};
  options.contributions = true;
  const Inspection found = inspect(model, family_request(place.entry()), options);
  CHECK(found.answer.tokens == place.entry().at("tokens").get<std::vector<std::int64_t>>());
  CHECK(found.tokens.size() == found.pieces.size());
  const at::Tensor rows = place.golden("rows").to(at::kLong);
  CHECK(at::tensor(found.rows).equal(rows));
  CHECK(largest_difference(found.sink_scores, place.golden("phi")) <= 20 * kBar);
  CHECK(largest_difference(every_fifth(found.attention, 1), place.golden("attention")) <= kBar);
  CHECK(largest_difference(every_fifth(found.redistributed, 1), place.golden("redistributed")) <=
        kBar);
  CHECK(largest_difference(found.visual_mass, place.golden("visual_mass")) <= kBar);
  CHECK(largest_difference(found.visual_ratio, place.golden("visual_ratio")) <= kBar);
  CHECK(largest_difference(every_fifth(found.head_attention[0], 1),
                           place.golden("head_attention")) <= kBar);
  CHECK(largest_difference(found.contribution, place.golden("contribution")) <= kBar);
  const auto selected = found.selected.sum(at::IntArrayRef{1, 2}).to(at::kLong);
  CHECK(selected.equal(
      at::tensor(place.entry().at("selected_rows").get<std::vector<std::int64_t>>())));
  CHECK(found.magnitudes.size(1) == 2);
  CHECK(found.magnitudes[0].select(0, 0).max().item<double>() > 60);  // the planted first token
}

TEST_CASE("a knockout equals attention without the tokens", "[inspection][golden]") {
  const Place place = golden_place();
  CAPTURE(place.name);
  const std::shared_ptr<const Model> model = load_family_case(family_case(place.name));
  Request request = family_request(place.entry());
  request.generation.max_new_tokens = 1;
  const auto tokens = place.entry().at("tokens").get<std::vector<std::int64_t>>();
  const auto check = [&](const Knockout& knockout, const char* key) {
    CAPTURE(key);
    const KnockoutAnswer answer = knock_out(model, request, knockout, tokens);
    CHECK(largest_difference(at::tensor(answer.expected_log_probs), place.golden(key)) <= kBar);
    return answer;
  };
  Knockout knockout;
  const KnockoutAnswer sinks = check(knockout, "knockout");
  const auto counted = place.entry().at("visual_sinks").get<std::vector<std::vector<int>>>();
  // Later layers' sinks may differ: what enters them does.
  CHECK(sinks.knocked_out[0] == static_cast<std::int64_t>(counted[0].size()));
  CHECK(sinks.knocked_out[1] == static_cast<std::int64_t>(counted[1].size()));
  knockout.keep_mass = true;
  check(knockout, "knockout_keep_mass");
  knockout.keep_mass = false;
  knockout.tokens = KnockoutTokens::kPositions;
  const at::Tensor positions = place.golden("positions").to(at::kLong);
  knockout.positions.assign(positions.const_data_ptr<std::int64_t>(),
                            positions.const_data_ptr<std::int64_t>() + positions.numel());
  check(knockout, "knockout_positions");
  knockout.positions = {0};
  CHECK_THROWS_AS(knock_out(model, request, knockout), ConfigError);
}

TEST_CASE("a random knockout takes as many tokens as there are sinks, none of them a sink",
          "[inspection]") {
  const Place place{"vila1_inside", "on"};
  const std::shared_ptr<const Model> model = load_family_case(family_case(place.name));
  Request request = family_request(place.entry());
  request.generation.max_new_tokens = 4;
  Knockout knockout;
  const auto sinks = knock_out(model, request, knockout, {5});
  knockout.tokens = KnockoutTokens::kRandom;
  const auto first = knock_out(model, request, knockout, {5}),
             again = knock_out(model, request, knockout, {5});
  CHECK(first.knocked_out[1] == sinks.knocked_out[1]);
  CHECK(first.expected_log_probs == again.expected_log_probs);
  request.var.phi_epsilon = 1e-6F;  // as the reference preset has it: another way to phi
  const auto other_epsilon = knock_out(model, request, knockout, {5});
  CHECK(other_epsilon.knocked_out == first.knocked_out);
  CHECK(std::abs(other_epsilon.expected_log_probs[0] - first.expected_log_probs[0]) < 1e-4);
  request.var.phi_epsilon.reset();
  knockout.seed = 1;
  CHECK(knock_out(model, request, knockout, {5}).expected_log_probs != first.expected_log_probs);
  knockout.tokens = KnockoutTokens::kNone;
  request.var.enabled = false;
  const auto none = knock_out(model, request, knockout, {5});
  CHECK(none.knocked_out[1] == 0);
  CHECK(none.expected_log_probs != first.expected_log_probs);
}

namespace {

/// A grey picture with a white square at [left, left + side) x [top, top + side).
RgbImage with_square(std::int64_t width, std::int64_t height, std::int64_t left, std::int64_t top,
                     std::int64_t side) {
  RgbImage image{width, height, {}};
  image.pixels.assign(static_cast<std::size_t>(3 * width * height), 90);
  for (std::int64_t y = top; y < top + side; ++y) {
    for (std::int64_t x = left; x < left + side; ++x)
      std::fill_n(image.pixels.begin() + 3 * (y * width + x), 3, std::uint8_t{255});
  }
  return image;
}

double overlap(double begin, double end, double other_begin, double other_end) {
  return std::max(0.0, std::min(end, other_end) - std::max(begin, other_begin));
}

/// How much of the box's part in the picture the square covers, in [0, 1]; -1: little of it is in
/// the picture.
double covered(const TokenBox& box, const RgbImage& picture, double left, double top, double side) {
  const auto width = static_cast<double>(picture.width),
             height = static_cast<double>(picture.height);
  const double inside =
      overlap(box.left, box.right, 0, width) * overlap(box.top, box.bottom, 0, height);
  if (inside < 0.2 * (box.right - box.left) * (box.bottom - box.top)) return -1;
  return overlap(box.left, box.right, left, left + side) *
         overlap(box.top, box.bottom, top, top + side) / inside;
}

/// Mean brightness of the pixels that each visual token reads, in the order of the tokens.
std::vector<double> brightness(const ProcessedImage& image, const VisionConfig& vision) {
  std::vector<double> out;
  const std::int64_t merge = vision.merge_size, patch = vision.patch_size;
  if (image.grid_rows > 0) {  // patches that are merged lie behind one another
    const at::Tensor values = image.pixels.mean(1).view({-1, merge * merge}).mean(1);
    return {values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel()};
  }
  const std::int64_t side = vision.image_size / patch, tokens = (side + merge - 1) / merge;
  for (std::int64_t tile = 0; tile < image.pixels.size(0); ++tile) {
    for (std::int64_t i = 0; i < tokens * tokens; ++i) {
      const std::int64_t row = vision.transposed_merge ? i % tokens : i / tokens,
                         column = vision.transposed_merge ? i / tokens : i % tokens;
      const std::int64_t top = row * merge * patch, left = column * merge * patch;
      const std::int64_t height = std::min(merge * patch, side * patch - top),
                         width = std::min(merge * patch, side * patch - left);
      out.push_back(
          image.pixels[tile].narrow(1, top, height).narrow(2, left, width).mean().item<double>());
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a bright square lands in the tokens whose boxes it covers", "[inspection][geometry]") {
  // Tower and projector read what `brightness` reads: token order is held by the goldens.
  const auto [name, mode, width, height] = GENERATE(
      std::tuple("mha", "crop", 300, 180), std::tuple("mha", "pad", 300, 180),
      std::tuple("mha", "crop", 150, 260), std::tuple("mha", "pad", 150, 260),
      std::tuple("qwen_flat", "auto", 300, 180), std::tuple("qwen_flat", "auto", 90, 200),
      std::tuple("internvl_small", "auto", 300, 180), std::tuple("internvl_small", "auto", 90, 200),
      std::tuple("internvl_small", "auto", 56, 56), std::tuple("vila15_llama2", "auto", 300, 180),
      std::tuple("vila15_llama3", "auto", 90, 200));
  CAPTURE(name, mode, width, height);
  LoadOptions options;
  options.device = "cpu";
  options.dtype = "fp32";
  const std::shared_ptr<const Model> model = name == std::string("mha")
                                                 ? Model::load(golden_archive("mha"), options)
                                                 : load_family_case(family_case(name));
  for (const double at : {0.05, 0.3, 0.55}) {
    const auto left = static_cast<std::int64_t>(at * width),
               top = static_cast<std::int64_t>((0.6 - at) * height);
    const std::int64_t side = std::min(width, height) * 2 / 5;
    CAPTURE(left, top, side);
    Request request;
    request.images = {with_square(width, height, left, top, side)};
    request.question = "Where?";
    request.image_mode = mode;
    request.var.enabled = false;
    request.generation.max_new_tokens = 1;
    const Inspection found = inspect(model, request);
    const std::vector<TokenBox>& boxes = found.images.at(0).boxes;
    const auto light_of = [&](const RgbImage& picture) {
      request.images = {picture};
      const LoadedModel& loaded = model->loaded();
      const PreparedPrompt prepared = prepare_prompt(loaded, request, /*first_turn=*/true);
      return brightness(prepared.images.at(0), loaded.config.vision);
    };
    const RgbImage picture = with_square(width, height, left, top, side);
    const std::vector<double> light = light_of(picture),
                              grey = light_of(with_square(width, height, 0, 0, 0));
    RgbImage all_white = picture;
    std::fill(all_white.pixels.begin(), all_white.pixels.end(), std::uint8_t{255});
    const std::vector<double> white = light_of(all_white);
    REQUIRE(boxes.size() == light.size());
    REQUIRE(static_cast<std::int64_t>(boxes.size()) ==
            found.images[0].positions.second - found.images[0].positions.first);
    double most = 0;
    for (std::size_t i = 0; i < boxes.size(); ++i) {
      const double share = covered(boxes[i], picture, static_cast<double>(left),
                                   static_cast<double>(top), static_cast<double>(side));
      if (share < 0) continue;
      most = std::max(most, share);
      CAPTURE(i, share, boxes[i].left, boxes[i].top, boxes[i].tile);
      CHECK(std::abs((light[i] - grey[i]) / (white[i] - grey[i]) - share) < 0.06);
    }
    CHECK(most > 0.1);
  }
}
