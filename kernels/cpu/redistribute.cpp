// redistribute and redistribute_ on the CPU.
//
// Work split: one thread owns a row (b, h, q) of K probabilities. Memory: the row is read from
// memory once for its four class masses; the pass that scales it finds it in the cache. The class
// of every key is found once per call and sequence, not once per row.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "checks.h"
#include "classes.h"
#include "cpu/lanes.h"

namespace libvar::cpu {
namespace {

// Keys whose masses are added up before they are added to the row's: keeps the rounding error small
// at any K.
constexpr std::int64_t kBlock = 256;

// The keys of one sequence. classes has a multiple of kLanes entries, the surplus in no class.
struct SequenceKeys {
  std::vector<std::int32_t> classes;
  float num_visual = 0.0f;
  bool has_visual_sink = false;
};

SequenceKeys classify(const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                      std::int64_t sequence, float tau) {
  const std::int64_t num_keys = sink_scores.size(1);
  const float* scores = sink_scores.const_data_ptr<float>() + sequence * sink_scores.stride(0);
  const bool* visual = visual_mask.const_data_ptr<bool>() + sequence * visual_mask.stride(0);
  SequenceKeys keys;
  keys.classes.assign(static_cast<std::size_t>(round_up(num_keys, kLanes)), -1);
  std::int64_t num_visual = 0;
  for (std::int64_t j = 0; j < num_keys; ++j) {
    const bool is_visual = visual[j * visual_mask.stride(1)];
    const int key_class = token_class(scores[j * sink_scores.stride(1)], is_visual, tau);
    keys.classes[static_cast<std::size_t>(j)] = key_class;
    num_visual += is_visual ? 1 : 0;
    keys.has_visual_sink |= key_class == static_cast<int>(TokenClass::kVisualSink);
  }
  keys.num_visual = static_cast<float>(num_visual);
  return keys;
}

// Adds the masses of x[0..count), count a multiple of kLanes. A NaN stays in its class.
void add_masses(float mass[kNumTokenClasses], const float* x, const std::int32_t* classes,
                std::int64_t count) {
  const FloatLanes zero = {};
  FloatLanes sums[kNumTokenClasses] = {};
  for (std::int64_t i = 0; i < count; i += kLanes) {
    FloatLanes values;
    IntLanes codes;
    load(values, x + i);
    std::memcpy(&codes, classes + i, sizeof(codes));
    for (int c = 0; c < kNumTokenClasses; ++c) sums[c] += codes == c ? values : zero;
  }
  for (int c = 0; c < kNumTokenClasses; ++c) mass[c] += sum_of(sums[c]);
}

template <typename T>
void row_masses(float mass[kNumTokenClasses], const T* row,
                const std::vector<std::int32_t>& classes, std::int64_t num_keys) {
  float block[kBlock];
  for (std::int64_t first = 0; first < num_keys; first += kBlock) {
    const std::int64_t count = std::min(kBlock, num_keys - first);
    const std::int64_t padded = round_up(count, kLanes);
    load_floats(block, row + first, count);
    std::fill(block + count, block + padded, 0.0f);
    add_masses(mass, block, classes.data() + first, padded);
  }
}

template <typename T>
void write_scaled(T* out, const T* row, const std::vector<std::int32_t>& classes,
                  const ClassWeights& weights, std::int64_t num_keys) {
  for (std::int64_t j = 0; j < num_keys; ++j) {
    const float weight = weights.weight[classes[static_cast<std::size_t>(j)]];
    out[j] = static_cast<T>(static_cast<float>(row[j]) * weight);
  }
}

// `out` is `probs` for the form in place; then only selected rows are written.
template <typename T>
void redistribute_rows(const at::Tensor& probs, const at::Tensor& out,
                       const std::vector<SequenceKeys>& sequences,
                       const std::optional<at::Tensor>& row_mask, const RedistributionRule& rule) {
  const std::int64_t num_heads = probs.size(1);
  const std::int64_t num_rows = probs.size(2);
  const std::int64_t num_keys = probs.size(3);
  const T* source = probs.const_data_ptr<T>();
  T* target = out.mutable_data_ptr<T>();
  const bool* mask = row_mask.has_value() ? row_mask->const_data_ptr<bool>() : nullptr;
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(1, num_keys));
  at::parallel_for(
      0, probs.size(0) * num_heads * num_rows, grain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
          const std::int64_t b = i / (num_heads * num_rows);
          const std::int64_t h = i / num_rows % num_heads;
          const std::int64_t q = i % num_rows;
          const SequenceKeys& keys = sequences[static_cast<std::size_t>(b)];
          const T* row = source + b * probs.stride(0) + h * probs.stride(1) + q * probs.stride(2);
          T* result = target + b * out.stride(0) + h * out.stride(1) + q * out.stride(2);
          const bool allowed =
              mask == nullptr || mask[b * row_mask->stride(0) + q * row_mask->stride(1)];
          ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
          if (allowed && keys.has_visual_sink && rule.head_rule != HeadRule::kNone) {
            float mass[kNumTokenClasses] = {};
            row_masses(mass, row, keys.classes, num_keys);
            weights = class_weights(mass, rule, keys.num_visual, true);
          }
          if (weights.selected) {
            write_scaled(result, row, keys.classes, weights, num_keys);
          } else if (result != row) {
            std::memcpy(result, row, static_cast<std::size_t>(num_keys) * sizeof(T));
          }
        }
      });
}

void redistribute_into(const at::Tensor& probs, const at::Tensor& out,
                       const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                       const std::optional<at::Tensor>& row_mask, const RedistributionRule& rule) {
  if (probs.numel() == 0) return;
  std::vector<SequenceKeys> sequences;
  for (std::int64_t b = 0; b < probs.size(0); ++b) {
    sequences.push_back(classify(sink_scores, visual_mask, b, rule.tau));
  }
  dispatch_floating(probs.scalar_type(), [&](auto element) {
    redistribute_rows<decltype(element)>(probs, out, sequences, row_mask, rule);
  });
}

at::Tensor redistribute_cpu(const at::Tensor& probs, const at::Tensor& sink_scores,
                            const at::Tensor& visual_mask,
                            const std::optional<at::Tensor>& row_mask, double tau, double rho,
                            double p, double min_visual_mass, double ratio_epsilon,
                            std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  const char* op = "redistribute";
  const RedistributionRule rule = checks::check_rule(
      op, {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute(op, probs, sink_scores, visual_mask, row_mask);
  at::Tensor out = at::empty(probs.sizes(), probs.options());
  redistribute_into(probs, out, sink_scores, visual_mask, row_mask, rule);
  return out;
}

void redistribute_in_place_cpu(at::Tensor& probs, const at::Tensor& sink_scores,
                               const at::Tensor& visual_mask,
                               const std::optional<at::Tensor>& row_mask, double tau, double rho,
                               double p, double min_visual_mass, double ratio_epsilon,
                               std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  const char* op = "redistribute_";
  const RedistributionRule rule = checks::check_rule(
      op, {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
  checks::check_redistribute(op, probs, sink_scores, visual_mask, row_mask);
  at::assert_no_internal_overlap(probs);
  redistribute_into(probs, probs, sink_scores, visual_mask, row_mask, rule);
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_redistribute", &libvar::cpu::redistribute_cpu);
  m.impl("_redistribute_", &libvar::cpu::redistribute_in_place_cpu);
}
