// attention on the CPU: checks, classes of the keys, threads. The computation is in
// attention_kernel.cpp.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "checks.h"
#include "classes.h"
#include "cpu/attention.h"
#include "cpu/attention_kernel.h"
#include "cpu/element_type.h"

namespace libvar::cpu {
namespace {

constexpr std::int64_t kMaxTileRows = 64;
constexpr std::int64_t kLeastTileRows = 8;    // below that keys are read too often
constexpr std::int64_t kPaddedDim = 32;       // a multiple of every build's vectors
constexpr std::int64_t kTileScores = 131072;  // floats, half of a usual second-level cache

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void classify_keys(std::uint8_t* __restrict classes, const float* scores, std::int64_t score_step,
                   const std::uint8_t* visual, std::int64_t visual_step, std::int64_t count,
                   float tau) {
  if (score_step == 1 && visual_step == 1) {  // a loop that the compiler vectorises
    for (std::int64_t j = 0; j < count; ++j) {
      classes[j] = static_cast<std::uint8_t>(token_class(scores[j], visual[j] != 0, tau));
    }
    return;
  }
  for (std::int64_t j = 0; j < count; ++j) {
    classes[j] = static_cast<std::uint8_t>(
        token_class(scores[j * score_step], visual[j * visual_step] != 0, tau));
  }
}

// The keys of every sequence by class. Owns what KeyClasses points to.
class ClassifiedKeys {
 public:
  ClassifiedKeys(const checks::AttentionTensors& t, const RedistributionRule& rule,
                 bool with_classes)
      : capacity_(round_up(t.key.size(2), kKeyBlock)) {
    const std::int64_t batch = t.query.size(0);
    sequences_.resize(static_cast<std::size_t>(batch));
    if (with_classes) {
      const std::int64_t blocks = capacity_ / kKeyBlock;
      classes_.reset(new std::uint8_t[static_cast<std::size_t>(batch * (capacity_ + blocks))]);
      blocks_.reset(new std::int32_t[static_cast<std::size_t>(batch * blocks)]);
    }
    for (std::int64_t b = 0; b < batch; ++b) {
      KeyClasses& keys = sequences_[static_cast<std::size_t>(b)];
      keys = {};
      keys.length =
          t.kv_lengths.has_value() ? t.kv_lengths->accessor<std::int32_t, 1>()[b] : t.key.size(2);
      keys.rule = rule;
      if (t.params.has_value()) {
        const auto params = t.params->accessor<float, 2>()[b];
        keys.rule.tau = params[0];
        keys.rule.rho = params[1];
        keys.rule.p = params[2];
        keys.rule.min_visual_mass = params[3];
      }
      keys.first_visual_sink = std::numeric_limits<std::int64_t>::max();
      if (with_classes) classify(t, b, keys);
    }
  }

  const KeyClasses* sequences() const { return sequences_.data(); }

 private:
  void classify(const checks::AttentionTensors& t, std::int64_t b, KeyClasses& keys) {
    const float* scores = t.sink_scores.const_data_ptr<float>() + b * t.sink_scores.stride(0);
    // As bytes, because GCC vectorises no loop over bools.
    const auto* visual = static_cast<const std::uint8_t*>(t.visual_mask.const_data_ptr()) +
                         b * t.visual_mask.stride(0);
    const std::int64_t score_step = t.sink_scores.stride(1), visual_step = t.visual_mask.stride(1);
    std::uint8_t* classes = classes_.get() + b * (capacity_ + capacity_ / kKeyBlock);
    std::uint8_t* block_classes = classes + capacity_;
    keys.classes = classes;
    keys.block_classes = block_classes;
    classify_keys(classes, scores, score_step, visual, visual_step, keys.length, keys.rule.tau);
    if (keys.length == 0) return;
    std::fill(classes + keys.length, classes + round_up(keys.length, kKeyBlock),
              classes[keys.length - 1]);
    const auto* sink = static_cast<const std::uint8_t*>(std::memchr(
        classes, static_cast<int>(TokenClass::kVisualSink), static_cast<std::size_t>(keys.length)));
    if (sink != nullptr) keys.first_visual_sink = sink - classes;
    sort_blocks(block_classes, blocks_.get() + b * (capacity_ / kKeyBlock), keys);
  }

  // Finds the class of every block and lists the blocks by class.
  static void sort_blocks(std::uint8_t* block_classes, std::int32_t* blocks, KeyClasses& keys) {
    const std::int64_t num_blocks = round_up(keys.length, kKeyBlock) / kKeyBlock;
    std::int32_t next[kMixedBlock + 2] = {};  // first counts of the class before, then places
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      const std::uint8_t* block = keys.classes + i * kKeyBlock;
      std::uint64_t low, high;
      std::memcpy(&low, block, sizeof(low));
      std::memcpy(&high, block + sizeof(low), sizeof(high));
      const bool pure = low == high && low == block[0] * std::uint64_t{0x0101010101010101};
      block_classes[i] = pure ? block[0] : kMixedBlock;
      ++next[block_classes[i] + 1];
    }
    for (int c = 0; c <= kMixedBlock; ++c) next[c + 1] += next[c];
    std::copy(std::begin(next), std::end(next), keys.class_begin);
    for (std::int64_t i = 0; i < num_blocks; ++i) {
      blocks[next[block_classes[i]]++] = static_cast<std::int32_t>(i);
    }
    keys.blocks = blocks;
  }

  std::int64_t capacity_;
  std::unique_ptr<std::uint8_t[]> classes_;  // [B][capacity, then its blocks]
  std::unique_ptr<std::int32_t[]> blocks_;   // [B][blocks of the capacity]
  std::vector<KeyClasses> sequences_;
};

AttentionCall make_call(const checks::AttentionTensors& t, const at::Tensor& out,
                        const KeyClasses* sequences, double scale, bool with_classes) {
  AttentionCall call = {};
  call.type = element_type(t.query.scalar_type());
  call.query = t.query.const_data_ptr();
  call.key = t.key.const_data_ptr();
  call.value = t.value.const_data_ptr();
  call.out = out.mutable_data_ptr();
  std::copy_n(t.query.strides().begin(), 3, call.query_stride);
  std::copy_n(t.key.strides().begin(), 3, call.key_stride);
  std::copy_n(t.value.strides().begin(), 3, call.value_stride);
  if (t.row_mask.has_value()) {
    call.row_mask = t.row_mask->const_data_ptr<bool>();
    std::copy_n(t.row_mask->strides().begin(), 2, call.row_mask_stride);
  }
  if (t.selected.has_value()) call.selected = t.selected->mutable_data_ptr<bool>();
  if (t.class_mass.has_value()) call.class_mass = t.class_mass->mutable_data_ptr<float>();
  call.num_heads = t.query.size(1);
  call.num_kv_heads = t.key.size(1);
  call.num_rows = t.query.size(2);
  call.head_dim = t.query.size(3);
  call.scale = static_cast<float>(scale);
  call.with_classes = with_classes;
  call.sequences = sequences;
  return call;
}

// Rows of a tile: as many as its scores leave in the cache, fewer where threads would have none.
std::int64_t choose_tile_rows(std::int64_t packed_rows, std::int64_t score_stride,
                              std::int64_t heads) {
  std::int64_t rows = std::clamp(kTileScores / score_stride / 4 * 4, kLeastTileRows, kMaxTileRows);
  const std::int64_t threads = at::get_num_threads();
  while (rows > kLeastTileRows && heads * ((packed_rows + rows - 1) / rows) < threads) rows /= 2;
  return std::min(rows, packed_rows);
}

using Scratch = std::unique_ptr<void, decltype(&std::free)>;

Scratch allocate_floats(std::int64_t count) {
  const auto bytes = static_cast<std::size_t>(round_up(count * 4, 64));
  Scratch scratch(std::aligned_alloc(64, bytes), &std::free);
  TORCH_CHECK(scratch != nullptr, "attention: out of memory, ", bytes, " bytes");
  return scratch;
}

// The tiles of a call: which rows the i-th one has.
struct Tiles {
  std::int64_t packed_rows, rows, per_head, num_kv_heads, count;

  Tiles(const AttentionCall& call, std::int64_t batch)
      : packed_rows(call.num_rows * (call.num_heads / call.num_kv_heads)),
        rows(choose_tile_rows(packed_rows, call.score_stride, batch * call.num_kv_heads)),
        per_head((packed_rows + rows - 1) / rows),
        num_kv_heads(call.num_kv_heads),
        count(batch * num_kv_heads * per_head) {}

  AttentionTile tile(std::int64_t i, float* scratch) const {
    const std::int64_t first_row = i % per_head * rows;
    return {i / per_head / num_kv_heads, i / per_head % num_kv_heads, first_row,
            std::min(first_row + rows, packed_rows), scratch};
  }
};

// One thread computes a tile from beginning to end.
void run_tiles(const AttentionCall& call, const Tiles& tiles) {
  const auto attend = LIBVAR_CPU_BUILDS(attend).chosen();
  const std::int64_t size =
      attention_scratch_size(tiles.rows, call.score_stride, round_up(call.head_dim, kPaddedDim), 2);
  at::parallel_for(0, tiles.count, 1, [&](std::int64_t begin, std::int64_t end) {
    const Scratch scratch = allocate_floats(size);
    for (std::int64_t i = begin; i < end; ++i) {
      attend(call, tiles.tile(i, static_cast<float*>(scratch.get())));
    }
  });
}

// Fewer tiles than threads: threads share the keys of a tile.
void run_steps(const AttentionCall& call, const Tiles& tiles, std::int64_t num_chunks) {
  const auto attend_step = LIBVAR_CPU_BUILDS(attend_step).chosen();
  const std::int64_t size =
      round_up(attention_scratch_size(tiles.rows, call.score_stride,
                                      round_up(call.head_dim, kPaddedDim), num_chunks),
               64);
  const Scratch scratch = allocate_floats(tiles.count * size);
  const auto tile = [&](std::int64_t i) {
    return tiles.tile(i, static_cast<float*>(scratch.get()) + i * size);
  };
  const auto for_chunks = [&](AttentionStep step) {
    at::parallel_for(0, tiles.count * num_chunks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t chunk = i % num_chunks;
        attend_step(call, tile(i / num_chunks), step, chunk, chunk + 1);
      }
    });
  };
  const auto for_rows = [&](AttentionStep step) {
    at::parallel_for(0, tiles.count * tiles.rows, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const AttentionTile own = tile(i / tiles.rows);
        const std::int64_t row = i % tiles.rows;
        if (row < own.end_row - own.first_row) attend_step(call, own, step, row, row + 1);
      }
    });
  };
  for (std::int64_t i = 0; i < tiles.count; ++i) {
    attend_step(call, tile(i), AttentionStep::kPrepare, 0, 0);
  }
  for_chunks(AttentionStep::kScores);
  for_rows(AttentionStep::kWeights);
  for_chunks(AttentionStep::kValues);
  for_rows(AttentionStep::kFinish);
}

void run(AttentionCall call, std::int64_t batch, std::int64_t max_keys) {
  // Rows a power of two apart would meet in the same few lines of a cache.
  call.score_stride = round_up(max_keys, kKeyBlock) + kKeyBlock;
  const Tiles tiles(call, batch);
  const std::int64_t num_chunks = (max_keys + kKeyChunk - 1) / kKeyChunk;
  if (tiles.count < at::get_num_threads() && num_chunks > 1 && !at::in_parallel_region()) {
    run_steps(call, tiles, num_chunks);
  } else {
    run_tiles(call, tiles);
  }
}

at::Tensor attend_checked(const checks::AttentionTensors& tensors, const RedistributionRule& rule,
                          double scale, bool with_classes) {
  at::Tensor out = at::empty(tensors.query.sizes(), tensors.query.options());
  if (out.numel() == 0) return out;
  const ClassifiedKeys keys(tensors, rule, with_classes);
  std::int64_t max_keys = 0;
  for (std::int64_t b = 0; b < tensors.query.size(0); ++b) {
    max_keys = std::max(max_keys, keys.sequences()[b].length);
  }
  run(make_call(tensors, out, keys.sequences(), scale, with_classes), tensors.query.size(0),
      max_keys);
  return out;
}

at::Tensor attention_cpu(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                         const std::optional<at::Tensor>& row_mask,
                         const std::optional<at::Tensor>& kv_lengths,
                         const std::optional<at::Tensor>& params,
                         const std::optional<at::Tensor>& selected,
                         const std::optional<at::Tensor>& class_mass, double scale, double tau,
                         double rho, double p, double min_visual_mass, double ratio_epsilon,
                         std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  const RedistributionRule rule = checks::check_rule(
      "attention", {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  const checks::AttentionTensors tensors{query,    key,        value,  sink_scores, visual_mask,
                                         row_mask, kv_lengths, params, selected,    class_mass};
  checks::check_attention(tensors, scale);
  if (kv_lengths.has_value()) checks::check_kv_length_values(*kv_lengths, key.size(2));
  if (params.has_value()) checks::check_sequence_param_values(*params);
  return attend_checked(tensors, rule, scale, /*with_classes=*/true);
}

}  // namespace

at::Tensor attention_with_classes(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const at::Tensor& sink_scores,
                                  const at::Tensor& visual_mask, double scale,
                                  const RedistributionRule& rule) {
  const std::optional<at::Tensor> none;
  return attend_checked({query, key, value, sink_scores, visual_mask, none, none, none, none, none},
                        rule, scale,
                        /*with_classes=*/true);
}

at::Tensor attention_without_classes(const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& value, double scale) {
  const at::Tensor unused;
  const std::optional<at::Tensor> none;
  return attend_checked({query, key, value, unused, unused, none, none, none, none, none}, {},
                        scale, /*with_classes=*/false);
}

}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_attention", &libvar::cpu::attention_cpu);
}
