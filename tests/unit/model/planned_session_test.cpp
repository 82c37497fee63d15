// Sessions hold to the memory plan; the towers take what it says.

#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <c10/core/InferenceMode.h>

#include <functional>
#include <memory>
#include <string>

#include "allocations.h"
#include "catch.h"
#include "generate/memory_plan.h"
#include "golden_fixture.h"
#include "libvar/batch_session.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "loaded_model.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"
#include "vision/encode_memory.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Matchers::Contains;

namespace {

at::Tensor wavy(at::IntArrayRef sizes) {
  return at::arange(c10::multiply_integers(sizes), at::kFloat).mul_(0.37).sin_().view(sizes);
}

/// A picture of rows x columns patches, or so many tiles.
ProcessedImage picture(const ModelConfig& config, std::int64_t rows, std::int64_t columns) {
  const VisionConfig& vision = config.vision;
  if (vision.tower == TowerKind::kQwen2Vl) {
    const std::int64_t size =
        3 * vision.temporal_patch_size * vision.patch_size * vision.patch_size;
    return {wavy({rows * columns, size}), rows, columns};
  }
  return {wavy({rows * columns, 3, vision.image_size, vision.image_size})};
}

std::int64_t planned_bytes(const LoadedModel& model, const std::vector<ProcessedImage>& images,
                           std::int64_t tiles) {
  return encode_bytes(model.config.vision, model.config.decoder.hidden_size, model.target.dtype,
                      images, tiles);
}

std::shared_ptr<const Model> mha() {
  static const std::shared_ptr<const Model> model = [] {
    LoadOptions options;
    options.device = "cpu";
    options.dtype = "fp32";
    return Model::load(golden_archive("mha"), options);
  }();
  return model;
}

Request question(std::int64_t new_tokens) {
  Request request;
  request.images = {golden_folder() / "images/landscape.png"};
  request.question = "Where is the red cat?";
  request.generation.max_new_tokens = new_tokens;
  return request;
}

Answer ask_with(std::int64_t memory_bytes, const Request& request) {
  SessionOptions options;
  options.memory_bytes = memory_bytes;
  return Session(mha(), options).ask(request);
}

/// The least budget, within 20 kB, with which `run` is not refused.
std::int64_t least_budget(const std::function<void(std::int64_t bytes)>& run) {
  std::int64_t low = 100'000, high = std::int64_t{1} << 30;
  while (high - low > 20'000) {
    const std::int64_t middle = low + (high - low) / 2;
    try {
      run(middle);
      high = middle;
    } catch (const ResourceError&) {
      low = middle;
    }
  }
  return high;
}

}  // namespace

TEST_CASE("vision towers take the planned memory", "[memory][vision]") {
  const c10::InferenceMode inference;
  for (const std::string name : {"qwen_flat", "internvl_small", "vila15_llama2", "vila1_folder"}) {
    for (const std::string dtype : {"fp32", "bf16"}) {
      const std::shared_ptr<const Model> owner = load_family_case(family_case(name), dtype);
      const LoadedModel& model = owner->loaded();
      // Enough patches that the copies of weights, which are planned for, don't count.
      const std::int64_t rows = model.config.vision.tower == TowerKind::kQwen2Vl ? 40 : 6;
      const std::vector<ProcessedImage> images = {picture(model.config, rows, 8),
                                                  picture(model.config, 4, 4)};
      for (const std::int64_t tiles : {0, 5}) {
        CAPTURE(name, dtype, tiles);
        const Allocations allocations;
        const auto features = model.encode_images(images, tiles);
        const std::int64_t planned = planned_bytes(model, images, tiles);
        CHECK(allocations.peak() <= planned);
        CHECK(planned <= 3 * allocations.peak());
      }
    }
  }
}

TEST_CASE("tiles in parts give the features of all at once", "[vision]") {
  const c10::InferenceMode inference;
  for (const std::string name : {"internvl_small", "vila15_llama2"}) {
    const std::shared_ptr<const Model> owner = load_family_case(family_case(name), "fp32");
    const LoadedModel& model = owner->loaded();
    const std::vector<ProcessedImage> images = {picture(model.config, 2, 3),
                                                picture(model.config, 1, 1)};
    const auto all = model.encode_images(images);
    for (const std::int64_t tiles : {1, 2, 4, 7, 8}) {
      CAPTURE(name, tiles);
      const auto parts = model.encode_images(images, tiles);
      REQUIRE(parts.size() == 2);
      for (std::size_t i = 0; i < 2; ++i)
        CHECK(at::allclose(parts[i], all[i], 1e-5, 1e-5 * all[i].abs().max().item<double>()));
    }
  }
}

TEST_CASE("a picture of many patches makes no matrix of patches by patches", "[memory][vision]") {
  const c10::InferenceMode inference;
  constexpr std::int64_t kPatches = 64 * 128;
  for (const std::string dtype : {"fp32", "bf16"}) {
    CAPTURE(dtype);
    const std::shared_ptr<const Model> owner = load_family_case(family_case("qwen_flat"), dtype);
    const ProcessedImage image = picture(owner->loaded().config, 64, 128);
    const Allocations allocations;
    owner->loaded().encode_images({image});
    CHECK(allocations.largest() < kPatches * kPatches);  // of bytes, as a mask has
    CHECK(allocations.peak() <= planned_bytes(owner->loaded(), {image}, 0));
  }
}

TEST_CASE("a session refuses what its memory does not suffice for, before work", "[memory]") {
  const Request request = question(8);
  CHECK_THROWS_AS(ask_with(100'000, request), ResourceError);
  CHECK_THROWS_WITH(ask_with(100'000, request),
                    Contains("100.0 kB are available") && Contains("8 new tokens"));
  const Answer whole = ask_with(0, request);
  CHECK(ask_with(1 << 30, request).tokens == whole.tokens);
  SessionOptions options;
  options.memory_bytes = -1;
  CHECK_THROWS_AS(Session(mha(), options), ConfigError);

  BatchOptions batch;
  batch.memory_bytes = 100'000;
  const auto on_answer = [](std::size_t, const Answer&) { return true; };
  CHECK_THROWS_AS(BatchSession(mha(), batch).ask({request}, on_answer), ResourceError);
  batch.memory_bytes = -1;
  CHECK_THROWS_AS(BatchSession(mha(), batch), ConfigError);
}

TEST_CASE("a refused question leaves the conversation as it was", "[memory]") {
  const std::int64_t budget =
      least_budget([](std::int64_t bytes) { ask_with(bytes, question(4)); });
  SessionOptions options;
  options.memory_bytes = budget;
  Session session(mha(), options);
  session.ask(question(4));
  const std::int64_t length = session.length();
  CHECK(length > 0);
  Request more = question(300);
  more.images.clear();
  CHECK_THROWS_AS(session.follow_up(more), ResourceError);
  CHECK(session.length() == length);
}

TEST_CASE("batches wait for memory, and answers stay the same", "[memory]") {
  std::vector<Request> requests(5, question(6));
  requests[1].question = "What colour is the sky behind it?";
  requests[3].images.clear();
  BatchOptions roomy;
  roomy.batch = 2;
  roomy.memory_bytes = std::int64_t{1} << 30;
  std::vector<std::vector<std::int64_t>> tokens;
  BatchSession(mha(), roomy).ask(requests, [&](std::size_t, const Answer& answer) {
    tokens.push_back(answer.tokens);
    return true;
  });
  REQUIRE(tokens.size() == 5);
  const std::int64_t least = least_budget([&](std::int64_t budget) {
    BatchOptions options = roomy;
    options.memory_bytes = budget;
    std::vector<std::vector<std::int64_t>> found;
    BatchSession(mha(), options).ask(requests, [&](std::size_t, const Answer& answer) {
      found.push_back(answer.tokens);
      return true;
    });
    CHECK(found == tokens);
  });
  CHECK(least < std::int64_t{64} << 20);
}
