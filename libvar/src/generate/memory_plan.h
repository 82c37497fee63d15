#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "families/family.h"
#include "image/image.h"
#include "libvar/request.h"
#include "weights.h"

namespace libvar {

/// A request's sizes, known before any work is done for it.
struct PlannedWork {
  std::int64_t rows = 0;           ///< of the prompt
  std::int64_t new_tokens = 0;     ///< at most
  std::int64_t sequences = 1;      ///< that are decoded together
  std::int64_t prefill_chunk = 0;  ///< as asked for; 0: the plan chooses
  std::int64_t cache_bytes = 0;    ///< that caches still take for it
  bool keeps_logits = false;
  const std::vector<ProcessedImage>* images = nullptr;  ///< to be encoded, or null
};

/// How a request is computed, and the memory that this takes beyond what is in use.
struct MemoryPlan {
  std::int64_t prefill_chunk = 0;  ///< most rows of the prompt computed at once; 0: all
  std::int64_t tiles_at_once = 0;  ///< most tiles that pass the vision tower together; 0: all
  std::int64_t vision_bytes = 0;   ///< to encode the images, before the prompt is run
  std::int64_t feature_bytes = 0;  ///< what the images became, and the prompt's embeddings
  std::int64_t cache_bytes = 0;
  std::int64_t activation_bytes = 0;  ///< of a chunk of the prompt and of the logits
  std::int64_t available_bytes = -1;  ///< -1: not known; then everything fits

  /// At the worst moment: images are encoded before the cache is there.
  std::int64_t needed_bytes() const;

  bool fits() const { return available_bytes < 0 || needed_bytes() <= available_bytes; }
};

/// Rows that are always computed at once, if there are so many: fewer save next to nothing.
inline constexpr std::int64_t kLeastChunk = 256;

/// The plan that computes most at once with the available memory: all where it suffices, so that
/// results do not depend on it then; else the largest number of tiles, and the largest chunk
/// (a power of two times kLeastChunk) that fit. Where nothing fits it is the smallest plan, and
/// MemoryPlan::fits() is false.
///
/// Sizes follow what the decoder and the vision towers allocate; a test holds them to it. Memory
/// that the system keeps for itself (fragments, threads) is not in them.
MemoryPlan plan_memory(const ModelConfig& config, const ComputeTarget& target,
                       const PlannedWork& work, std::int64_t available_bytes);

/// What a request may take: its budget without the caches that are there, or what the device has.
/// @param budget_bytes  SessionOptions::memory_bytes; 0: none
std::int64_t memory_for_request(at::Device device, std::int64_t budget_bytes,
                                std::int64_t cache_bytes);

/// @throws ResourceError  the plan does not fit; with the numbers, and what to change
void require_memory(const MemoryPlan& plan, const PlannedWork& work, const ModelConfig& config);

}  // namespace libvar
