#include "soak/requests.h"

#include <array>
#include <filesystem>
#include <limits>

#include "golden_fixture.h"
#include "unit/model/family_run.h"

namespace libvar::testing {
namespace {

constexpr std::array kPictures = {"flat.png", "landscape.png", "portrait.png",
                                  "tiny.png", "uneven.png",    "wide.png"};

constexpr std::array kQuestions = {"What is it?", "Is there a dog?", "How many circles are there?",
                                   "Who is in the picture, and where?", "Why"};

std::filesystem::path picture(const char* name) {
  return golden_folder() / "images" / name;
}

}  // namespace

std::vector<SoakModel> load_soak_models(const std::string& device, const std::string& dtype) {
  LoadOptions options;
  options.device = device;
  options.dtype = dtype;
  std::vector<SoakModel> out = {
      {"demo", Model::load(LIBVAR_SOURCE_DIR "/examples/demo_model/demo.pt", options)},
      {"llava", Model::load(golden_archive("mha"), options)}};
  for (const char* name : {"qwen_flat", "internvl_small", "vila15_llama3"})
    out.push_back({name, load_family_case(family_case(name), dtype, device)});
  return out;
}

std::int64_t RequestMaker::pick(std::int64_t count) {  // std's distributions differ by library
  return static_cast<std::int64_t>(random_() % static_cast<std::uint32_t>(count));
}

void RequestMaker::set_images(Request& request) {
  if (one_in(2)) {  // a kept prefix is of use to the next question only where it has its pictures
    request.images = last_images_;
    return;
  }
  constexpr std::array<std::int64_t, 6> kCounts = {0, 1, 1, 1, 2, 2};
  for (std::int64_t left = kCounts[static_cast<std::size_t>(pick(6))]; left > 0; --left) {
    if (one_in(6)) {
      RgbImage noise{20 + pick(100), 20 + pick(60)};
      noise.pixels.resize(static_cast<std::size_t>(noise.width * noise.height * 3));
      for (std::uint8_t& value : noise.pixels) value = static_cast<std::uint8_t>(random_());
      request.images.emplace_back(std::move(noise));
    } else {
      request.images.emplace_back(picture(kPictures[static_cast<std::size_t>(pick(6))]));
    }
  }
  last_images_ = request.images;
}

VarParams RequestMaker::var(const Model& model) {
  constexpr std::array kPresets = {"general", "hallucination", "vision-centric", "reference"};
  constexpr std::array kP = {0.3F, 0.6F, 1.0F};
  constexpr std::array kRho = {0.0F, 0.5F, 0.8F};
  constexpr std::array kTau = {2.0F, 20.0F, std::numeric_limits<float>::infinity()};
  VarParams out = one_in(4) ? VarParams::preset(kPresets[static_cast<std::size_t>(pick(4))])
                            : model.var_defaults();
  out.enabled = !one_in(5);
  if (one_in(2)) out.p = kP[static_cast<std::size_t>(pick(3))];
  if (one_in(2)) out.rho = kRho[static_cast<std::size_t>(pick(3))];
  if (one_in(3)) out.tau = kTau[static_cast<std::size_t>(pick(3))];
  if (one_in(2)) out.min_visual_mass = 0.05F;
  if (one_in(4)) out.first_layer = pick(3);
  if (one_in(8)) out.include_last_layer = true;
  if (one_in(8)) out.generated_sinks = false;  // from here on: not decoded with the others
  if (one_in(12)) out.sources = class_set(TokenClass::kVisualSink);
  if (one_in(12)) out.targets = class_set(TokenClass::kTextNonSink);
  if (one_in(12)) out.head_rule = HeadRule::kAll;
  return out;
}

Request RequestMaker::request(const Model& model) {
  Request out;
  set_images(out);
  out.question = kQuestions[static_cast<std::size_t>(pick(5))];
  for (std::int64_t words = one_in(3) ? pick(12) : 0; words > 0; --words)
    out.question.append(" ").append(std::to_string(pick(100)));
  if (one_in(8)) out.system = "Be brief.";
  out.var = var(model);
  out.generation.max_new_tokens = 1 + pick(one_in(4) ? 48 : 12);
  if (one_in(4) && draws_) {
    out.generation.temperature = 0.8;
    out.generation.top_k = pick(2) * 20;
    out.generation.seed = static_cast<std::uint64_t>(pick(1000));
  }
  out.return_logits = true;
  return out;
}

BatchOptions RequestMaker::options() {
  constexpr std::array<std::int64_t, 5> kBatches = {1, 2, 3, 5, 8};
  constexpr std::array<std::int64_t, 4> kPrefixes = {0, 1, 2, 4};
  constexpr std::array<std::int64_t, 3> kChunks = {0, 0, 50};
  BatchOptions out;
  out.batch = kBatches[static_cast<std::size_t>(pick(5))];
  out.prefixes = kPrefixes[static_cast<std::size_t>(pick(4))];
  out.prefill_chunk = kChunks[static_cast<std::size_t>(pick(3))];
  return out;
}

std::vector<Request> RequestMaker::fixed(const Model& model) {
  Request request;
  request.var = model.var_defaults();
  request.return_logits = true;
  request.question = kQuestions[3];
  for (int i = 0; i < 60; ++i) request.question += " 88";
  request.generation.max_new_tokens = 4;
  std::vector<Request> out;
  const auto add = [&](const std::vector<const char*>& names) {
    request.images.clear();
    for (const char* name : names) request.images.emplace_back(picture(name));
    out.push_back(request);
  };
  // Longer than any of request(), and in every place of a batch, so that all of a cache is touched.
  for (int i = 0; i < 8; ++i) add({"uneven.png", "wide.png"});
  request.question = kQuestions[3];
  add({});
  request.generation.max_new_tokens = 8;
  add({"flat.png"});
  add({"tiny.png", "flat.png"});
  add({"flat.png"});
  return out;
}

}  // namespace libvar::testing
