// Plans in exact numbers, and held to what decoder and towers allocate.

#include "generate/memory_plan.h"

#include <ATen/Parallel.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <fstream>

#include "allocations.h"
#include "catch.h"
#include "decoder/decoder.h"
#include "device.h"
#include "generate/conversation.h"
#include "libvar/error.h"
#include "temporary_folder.h"
#include "unit/model/tiny_decoder.h"
#include "vision/encode_memory.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Matchers::Contains;
using Catch::Matchers::Equals;

namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.decoder.hidden_size = 8;
  config.decoder.intermediate_size = 16;
  config.decoder.num_layers = 2;
  config.decoder.num_heads = 2;
  config.decoder.num_kv_heads = 1;
  config.decoder.head_dim = 4;
  config.decoder.vocab_size = 100;
  config.decoder.max_positions = 4096;
  config.vision.hidden_size = 4;
  config.vision.intermediate_size = 8;
  config.vision.num_heads = 2;
  config.vision.image_size = 8;
  config.vision.patch_size = 4;
  config.visual_tokens = 4;
  return config;
}

MemoryPlan plan(const PlannedWork& work, std::int64_t available) {
  return plan_memory(small_config(), ComputeTarget(), work, available);
}

PlannedWork text_of(std::int64_t rows) {
  PlannedWork work;
  work.rows = rows;
  work.new_tokens = 24;
  work.cache_bytes =
      KvCache(small_config().decoder, ComputeTarget()).bytes_to_reserve(rows + work.new_tokens);
  return work;
}

/// `count` pictures of one tile.
std::vector<ProcessedImage> tiles(std::int64_t count) {
  return std::vector<ProcessedImage>(static_cast<std::size_t>(count),
                                     ProcessedImage{at::zeros({1, 3, 8, 8})});
}

}  // namespace

TEST_CASE("the plan of a prompt has the sizes of its cache and activations", "[memory]") {
  const MemoryPlan all = plan(text_of(1000), 1 << 30);
  CHECK(all.prefill_chunk == 0);
  CHECK(all.vision_bytes == 0);
  CHECK(all.cache_bytes == 1024 * (2 * (2 * 4 * 4 + 4) + 1));
  CHECK(all.feature_bytes == 1000 * 8 * 4);
  // A row: 4 * (3 * 8 + 4 * 8 + 2 * 4 + 2 * 4) + 2 * 2 + 4 * 2 = 300 bytes.
  CHECK(all.activation_bytes == 1000 * 300 + 4 * 8 * 16 + 100 * (4 + 64));
  CHECK(all.needed_bytes() == 414'064);
  PlannedWork work = text_of(1000);
  work.keeps_logits = true;
  CHECK(plan(work, -1).activation_bytes == all.activation_bytes + 2 * 25 * 100 * 4);
  work.keeps_logits = false;
  work.sequences = 3;
  CHECK(plan(work, -1).activation_bytes == all.activation_bytes + 2 * 100 * (4 + 64));
}

TEST_CASE("on a GPU the product of gate and up and states of attention have memory of their own",
          "[memory]") {
  ModelConfig config = small_config();
  config.decoder.intermediate_size = 32;
  ComputeTarget target;
  const auto activations = [&](std::int64_t rows = 1000) {
    return plan_memory(config, target, text_of(rows), -1).activation_bytes;
  };
  // A row: 4 * (3 * 8 + 2 * 32 + 2 * 4) + 2 * 2 + 4 * 2 = 396 bytes.
  CHECK(activations() == 1000 * 396 + 4 * 8 * 32 + 100 * (4 + 64));
  target.device = at::Device(at::kCUDA, 0);  // 4 * (2 * 8 + 3 * 32 + 2 * 4) + 12 = 492
  constexpr std::int64_t kStates = std::int64_t{64} << 20, kRest = 4 * 8 * 32 + 100 * (4 + 64);
  CHECK(activations() == 1000 * 492 + kStates + kRest);
  // A tile of 64 rows: for each 256 keys four vectors of 4 floats and their numbers.
  constexpr std::int64_t kMany = 4'000'000, kNew = 24;
  CHECK(activations(kMany) == kMany * 492 + ((kMany + kNew) / 256 + 1) * 64 * 4 * 32 + kRest);
}

TEST_CASE("a prompt is computed in the largest chunks for which there is memory", "[memory]") {
  const PlannedWork work = text_of(1000);
  CHECK(plan(work, 414'064).prefill_chunk == 0);
  CHECK(plan(work, -1).prefill_chunk == 0);
  CHECK(plan(work, 414'063).prefill_chunk == 512);
  CHECK(plan(work, 414'064 - 488 * 300).prefill_chunk == 512);
  CHECK(plan(work, 414'063 - 488 * 300).prefill_chunk == 256);
  const MemoryPlan least = plan(work, 414'064 - 744 * 300);
  CHECK((least.prefill_chunk == 256 && least.fits()));
  CHECK_FALSE(plan(work, 414'063 - 744 * 300).fits());
  PlannedWork fixed = work;
  fixed.prefill_chunk = 600;  // asked for: not changed
  CHECK(plan(fixed, 414'063 - 400 * 300).prefill_chunk == 600);
  CHECK_FALSE(plan(fixed, 414'063 - 400 * 300).fits());
  CHECK(plan(text_of(200), 1).prefill_chunk == 0);
}

TEST_CASE("as many tiles are encoded at once as there is memory for", "[memory][vision]") {
  const std::vector<ProcessedImage> images = tiles(6);
  PlannedWork work;
  work.rows = 24;
  work.images = &images;
  // A tile: 4 * (2 * 192 + 2 * 5 * 4) = 1696 bytes; the pixels of all are put together.
  CHECK(plan(work, 1 << 20).vision_bytes == 6 * 192 * 4 + 6 * 1696 + 256);
  CHECK(plan(work, 15'040).tiles_at_once == 0);
  CHECK(plan(work, 15'039).tiles_at_once == 5);
  CHECK(plan(work, 10'912).tiles_at_once == 3);
  CHECK(plan(work, 10'911).tiles_at_once == 2);
  const MemoryPlan least = plan(work, 7'519);
  CHECK((least.tiles_at_once == 1 && least.vision_bytes == 7'520 && !least.fits()));
  CHECK(least.feature_bytes == (24 + 6 * 4) * 8 * 4);
}

TEST_CASE("an impossible request is refused with its numbers", "[memory]") {
  const std::vector<ProcessedImage> images = tiles(1);
  PlannedWork work = text_of(1000);
  work.images = &images;
  work.new_tokens = 24;
  ModelConfig config = small_config();
  const MemoryPlan small = plan(work, 100'000);
  CHECK_THROWS_AS(require_memory(small, work, config), ResourceError);
  CHECK_THROWS_WITH(
      require_memory(small, work, config),
      Equals("memory: the request needs 191.0 kB, but only 100.0 kB are available: 74.8 kB for "
             "caches of 1000 "
             "prompt and 24 new tokens, 84.1 kB for activations of 256 rows at a time, 32.1 kB for "
             "embeddings; before that 2.7 kB to encode the images. What helps: fewer new tokens "
             "(max_new_tokens is 24), fewer pictures"));
  require_memory(plan(work, 1 << 20), work, config);
  work.prefill_chunk = 300;
  work.sequences = 2;
  config.image.mode = ImageMode::kDynamic;
  CHECK_THROWS_WITH(require_memory(plan(work, 1000), work, config),
                    Contains("a smaller batch (2)") && Contains("a smaller prefill_chunk (300)") &&
                        Contains("max_pixels"));
  config.image.mode = ImageMode::kTiles;
  CHECK_THROWS_WITH(require_memory(plan(work, 1000), work, config), Contains("max_tiles"));
}

TEST_CASE("a budget is for the caches that are there, too", "[memory]") {
  CHECK(memory_for_request(at::kCPU, 0, 5) == Approx(available_host_bytes()).epsilon(0.2));
  CHECK(memory_for_request(at::kCPU, 1000, 300) == 700);
  CHECK(memory_for_request(at::kCPU, 1000, 3000) == 0);
  CHECK(memory_for_request(at::kCPU, std::int64_t{1} << 60, 0) <= available_host_bytes() * 1.2);
}

TEST_CASE("a cache says what growth takes", "[memory]") {
  const c10::InferenceMode inference;
  for (const std::int64_t length : {0, 40}) {
    CAPTURE(length);
    KvCache cache(small_config().decoder, ComputeTarget(), 3);
    CHECK(cache.bytes_to_reserve(64) == 3 * 64 * 73);
    cache.reserve(64);
    CHECK(cache.bytes() == 3 * 64 * 73);
    CHECK(cache.bytes_to_reserve(64) == 0);
    cache.advance(length);
    const std::int64_t planned = cache.bytes_to_reserve(70);
    const Allocations allocations;
    const std::int64_t before = cache.bytes();
    cache.reserve(70);
    // Old buffers that go are not seen: they were allocated before.
    if (length == 0) CHECK(planned == 3 * 6 * 73);
    if (length > 0) CHECK(planned == 3 * 32 * 73 + 3 * 64 * 4 * 4);
    CHECK(cache.bytes() - before <= planned);
    CHECK(allocations.peak() <= before + planned);
  }
}

TEST_CASE("what a limit of a control group leaves", "[memory]") {
  const TemporaryFolder root;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  const std::filesystem::path folder = root / "";
  const std::string path = std::filesystem::path(folder).parent_path().string();
  const auto left = [&](const std::string& group) {
    return available_group_bytes(group, path, GroupVersion::k2);
  };
  CHECK(left("/a/b") == -1);
  write("a/b/memory.max", "max\n");
  CHECK(left("/a/b") == -1);
  write("a/memory.max", "5000\n");
  CHECK(left("/a/b") == 5000);
  write("a/memory.current", "3000\n");
  CHECK(left("/a/b") == 2000);
  write("a/memory.stat", "anon 1800\nfile 1200\ninactive_file 900\nactive_file 100\n");
  CHECK(left("/a/b") == 3000);
  write("a/b/memory.max", "1500\n");
  CHECK(left("/a/b") == 1500);
  write("a/b/memory.current", "1600\n");
  CHECK(left("/a/b") == 0);
  write("memory.max", "1200\n");  // the mount is a container's own group
  CHECK(left("/c") == 1200);
  CHECK(left("/") == 1200);
  CHECK(left("") == -1);
}

TEST_CASE("what a limit of a control group of version 1 leaves", "[memory]") {
  const TemporaryFolder root;
  const auto write = [&](const std::string& name, const std::string& text) {
    std::filesystem::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  const auto left = [&](const std::string& group) {
    return available_group_bytes(group, root.path(), GroupVersion::k1);
  };
  CHECK(left("/a/b") == -1);
  write("memory.limit_in_bytes", "9223372036854771712\n");  // none
  CHECK(left("/a/b") == 9223372036854771712);
  write("a/memory.limit_in_bytes", "5000\n");
  write("a/memory.usage_in_bytes", "3000\n");
  write("a/memory.stat",
        "active_file 7\ninactive_file 7\ntotal_active_file 100\ntotal_inactive_file 900\n");
  CHECK(left("/a/b") == 3000);
  write("a/b/memory.limit_in_bytes", "1500\n");
  CHECK(left("/a/b") == 1500);
  CHECK(left("") == -1);
}

TEST_CASE("prompts take the planned memory, and no matrix of rows by rows", "[memory]") {
  const c10::InferenceMode inference;
  const int threads = at::get_num_threads();
  at::set_num_threads(1);  // what PyTorch's attention takes for each thread is not planned
  TinyDecoder tiny = make_tiny_decoder({4, 2, 24, true, false});
  tiny.config.max_positions = 4096;
  constexpr std::int64_t kVisual = 2000, kText = 48;
  Sequence prompt;
  prompt.ids.assign(kVisual + kText, 3);
  prompt.visual_spans = {{8, 8 + kVisual}};
  prompt.visual_sizes = {{kVisual}};
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const std::int64_t chunk : {0, 512}) {
      CAPTURE(dtype, chunk);
      ComputeTarget target;
      target.dtype = dtype;
      const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, target));
      ModelConfig config;
      config.decoder = tiny.config;
      PlannedWork work;
      work.rows = kVisual + kText;
      work.new_tokens = 4;
      work.prefill_chunk = chunk;
      work.cache_bytes = KvCache(tiny.config, target).bytes_to_reserve(work.rows + work.new_tokens);
      const MemoryPlan planned = plan_memory(config, target, work, -1);
      VarParams var;
      var.first_layer = 0;
      const std::vector<at::Tensor> features = {
          random_tensor({kVisual, tiny.config.hidden_size}, 5).to(dtype)};
      const Allocations allocations;
      Conversation conversation(decoder, chunk);
      conversation.prefill(prompt, features, var, work.new_tokens);
      const std::int64_t peak = allocations.peak();
      conversation.step(3, var);
      conversation.step(4, var);
      CHECK(peak <= planned.needed_bytes());
      CHECK(planned.needed_bytes() <= 1.5 * peak);
      CHECK(allocations.largest() < work.rows * work.rows);  // of bytes, as a mask has
    }
  }
  at::set_num_threads(threads);
}
