#include "generate/memory_plan.h"

#include <c10/util/StringUtil.h>

#include <algorithm>

#include "device.h"
#include "libvar/error.h"
#include "vision/encode_memory.h"

namespace libvar {
namespace {

/// For each token of the vocabulary and sequence: what sampling makes of the logits, in float64.
constexpr std::int64_t kChoiceBytes = 64;

/// The worst moments of a layer, for each row. Attention: what the layer before adds, the norm,
/// queries, keys, values, turned queries, what they mix to (twice: in parts and put together), the
/// output. MLP: what attention adds, the norm, gate, up, then the output, or on a GPU before it
/// their product.
std::int64_t row_bytes(const DecoderConfig& config, const ComputeTarget& target,
                       std::int64_t element) {
  const std::int64_t queries = config.num_heads * config.head_dim,
                     keys = config.num_kv_heads * config.head_dim;
  const std::int64_t attention = 3 * config.hidden_size + 4 * queries + 2 * keys;
  const std::int64_t product = target.device.is_cpu() ? 0 : config.intermediate_size;
  const std::int64_t mlp =
      2 * config.hidden_size + 2 * config.intermediate_size + std::max(config.hidden_size, product);
  const std::int64_t angles = 2 * config.head_dim;
  const std::int64_t selected = config.num_layers * config.num_heads;  // bool
  const std::int64_t log_sums = 4 * config.num_heads;                  // of PyTorch's attention
  return element * (std::max(attention, mlp) + angles) + selected + log_sums;
}

/// What a matrix product may take beside its result: another layout of its weight.
std::int64_t workspace(const DecoderConfig& config, std::int64_t element) {
  return element * config.hidden_size *
         std::max(config.intermediate_size, config.num_heads * config.head_dim);
}

/// Partial states of attention on CUDA: of a few sequences or rows at a time, but at least of one
/// row, or of a tile of 64 (row, head) pairs of each key head. A state has a float32 vector and
/// some numbers for each range of keys and token class.
std::int64_t partial_states(const DecoderConfig& config, const ComputeTarget& target,
                            const PlannedWork& work) {
  constexpr std::int64_t kUsual = std::int64_t{64} << 20, kRowKeys = 64, kTileKeys = 256,
                         kTileRows = 64, kClasses = 4, kNumbers = 16;
  if (target.device.is_cpu()) return 0;
  const std::int64_t keys = work.rows + work.new_tokens;
  const std::int64_t state = kClasses * (4 * config.head_dim + kNumbers);
  return std::max({kUsual, (keys / kRowKeys + 1) * config.num_heads * state,
                   (keys / kTileKeys + 1) * kTileRows * config.num_kv_heads * state});
}

std::int64_t activation_bytes(const DecoderConfig& config, const ComputeTarget& target,
                              const PlannedWork& work, std::int64_t chunk) {
  const auto element = static_cast<std::int64_t>(c10::elementSize(target.dtype));
  const std::int64_t rows =
      std::max(chunk > 0 ? std::min(chunk, work.rows) : work.rows, work.sequences);
  std::int64_t bytes = rows * row_bytes(config, target, element) + workspace(config, element) +
                       partial_states(config, target, work) +
                       work.sequences * config.vocab_size * (element + kChoiceBytes);
  if (work.keeps_logits && target.device.is_cpu())  // one by one, and stacked at the end
    bytes += 2 * (work.new_tokens + 1) * config.vocab_size * 4;
  return bytes;
}

std::int64_t visual_tokens(const ModelConfig& config, const std::vector<ProcessedImage>& images) {
  if (const std::int64_t tiles = count_tiles(config.vision, images); tiles > 0)
    return tiles * config.visual_tokens;
  std::int64_t tokens = 0;
  for (const ProcessedImage& image : images) {
    tokens += image.grid_rows * image.grid_columns /
              (config.vision.merge_size * config.vision.merge_size);
  }
  return tokens;
}

/// "21.4 GB", "3.0 MB", "17 bytes"
std::string memory_text(std::int64_t bytes) {
  for (const auto& [unit, name] :
       {std::pair{1'000'000'000, " GB"}, {1'000'000, " MB"}, {1'000, " kB"}}) {
    if (bytes < unit) continue;
    const std::int64_t tenths = (bytes + unit / 20) / (unit / 10);
    return c10::str(tenths / 10, ".", tenths % 10, name);
  }
  return c10::str(bytes, " bytes");
}

}  // namespace

std::int64_t MemoryPlan::needed_bytes() const {
  return std::max(vision_bytes, feature_bytes + cache_bytes + activation_bytes);
}

MemoryPlan plan_memory(const ModelConfig& config, const ComputeTarget& target,
                       const PlannedWork& work, std::int64_t available_bytes) {
  const auto element = static_cast<std::int64_t>(c10::elementSize(target.dtype));
  MemoryPlan plan;
  plan.available_bytes = available_bytes;
  plan.prefill_chunk = work.prefill_chunk;
  plan.cache_bytes = work.cache_bytes;
  plan.feature_bytes = work.rows * config.decoder.hidden_size * element;
  if (work.images != nullptr) {
    const auto encode = [&](std::int64_t tiles) {
      return encode_bytes(config.vision, config.decoder.hidden_size, target.dtype, *work.images,
                          tiles);
    };
    plan.feature_bytes +=
        visual_tokens(config, *work.images) * config.decoder.hidden_size * element;
    plan.vision_bytes = encode(0);
    const auto too_much = [&] {
      return available_bytes >= 0 && plan.vision_bytes > available_bytes;
    };
    for (std::int64_t tiles = count_tiles(config.vision, *work.images) - 1; tiles > 0 && too_much();
         --tiles) {
      plan.tiles_at_once = tiles;
      plan.vision_bytes = encode(tiles);
    }
  }
  plan.activation_bytes = activation_bytes(config.decoder, target, work, plan.prefill_chunk);
  if (work.prefill_chunk > 0 || plan.fits()) return plan;
  std::int64_t chunk = kLeastChunk;
  while (2 * chunk < work.rows) chunk *= 2;
  for (; chunk >= kLeastChunk && chunk < work.rows && !plan.fits(); chunk /= 2) {
    plan.prefill_chunk = chunk;
    plan.activation_bytes = activation_bytes(config.decoder, target, work, chunk);
  }
  return plan;
}

std::int64_t memory_for_request(at::Device device, std::int64_t budget_bytes,
                                std::int64_t cache_bytes) {
  const std::int64_t available = available_bytes(device);
  if (budget_bytes <= 0) return available;
  const std::int64_t rest = std::max<std::int64_t>(budget_bytes - cache_bytes, 0);
  return available < 0 ? rest : std::min(rest, available);
}

void require_memory(const MemoryPlan& plan, const PlannedWork& work, const ModelConfig& config) {
  if (plan.fits()) return;
  const std::int64_t chunk =
      plan.prefill_chunk > 0 ? std::min(plan.prefill_chunk, work.rows) : work.rows;
  std::string advice = c10::str("fewer new tokens (max_new_tokens is ", work.new_tokens, ")");
  if (work.sequences > 1) advice += c10::str(", a smaller batch (", work.sequences, ")");
  if (chunk > kLeastChunk) advice += c10::str(", a smaller prefill_chunk (", chunk, ")");
  if (work.images != nullptr && !work.images->empty()) {
    switch (config.image.mode) {
      case ImageMode::kTiles:
        advice += ", fewer tiles (max_tiles) or pictures";
        break;
      case ImageMode::kDynamic:
        advice += ", fewer pixels (max_pixels) or pictures";
        break;
      default:
        advice += ", fewer pictures";
    }
  }
  throw ResourceError(c10::str(
      "memory: the request needs ", memory_text(plan.needed_bytes()), ", but only ",
      memory_text(plan.available_bytes), " are available: ", memory_text(plan.cache_bytes),
      " for caches of ", work.rows, " prompt and ", work.new_tokens, " new tokens, ",
      memory_text(plan.activation_bytes), " for activations of ", chunk, " rows at a time, ",
      memory_text(plan.feature_bytes), " for embeddings; before that ",
      memory_text(plan.vision_bytes), " to encode the images. What helps: ", advice));
}

}  // namespace libvar
