// attention on the CPU: causal softmax attention with redistribution, in one pass over keys and
// values.
//
// Work split: one thread owns kTileRows query rows of one head and walks over the keys in tiles of
// kTileKeys, whose borders are multiples of kTileKeys in the sequence. Memory: one tile of K and
// one of V as float, kTileKeys scores, and per row the query and one online softmax state (o_C,
// l_C) per token class under a common running maximum.
//
// What a row computes depends on its own keys only: never on the other rows of the tile, on the
// batch, on the capacity behind the keys or on the number of threads. The merge of the four states
// is the same arithmetic with and without redistribution, so weights of exactly 1 give the same
// bits as HeadRule::kNone.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <vector>

#include "checks.h"
#include "classes.h"
#include "cpu/exp.h"
#include "cpu/lanes.h"

namespace libvar::cpu {
namespace {

constexpr std::int64_t kTileKeys = 64;
constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kKeysAtOnce = 4;  // keys whose dot products with the query run side by side
constexpr std::int64_t kLanesAtOnce =
    4;  // vectors of the output that stay in registers while keys are added
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// What one sequence's rows need to know about its keys.
struct Sequence {
  std::int64_t length = 0;
  RedistributionRule rule;
  std::vector<std::uint8_t> classes;        // [length]
  std::vector<std::int32_t> visual_before;  // [length + 1]: visual keys among the first j
  std::int64_t first_visual_sink = std::numeric_limits<std::int64_t>::max();
};

// One call, without torch: pointers, sizes, strides in elements.
template <typename T>
struct Problem {
  const T* query;
  const T* key;
  const T* value;
  T* out;                // contiguous
  const bool* row_mask;  // null: rows whose own position is not visual
  bool* selected;        // null: not wanted
  float* class_mass;     // null: not wanted
  std::int64_t num_heads, heads_per_kv_head, num_rows, head_dim, padded_dim;
  std::int64_t query_stride[3], key_stride[3], value_stride[3], row_mask_stride[2];
  float scale;
};

// Everything that a thread writes while it works on one tile of rows.
struct Scratch {
  explicit Scratch(std::int64_t dim)
      : keys(static_cast<std::size_t>(kTileKeys * dim)),
        values(static_cast<std::size_t>(kTileKeys * dim)),
        queries(static_cast<std::size_t>(kTileRows * dim)),
        states(static_cast<std::size_t>(kTileRows * kNumTokenClasses * dim)),
        result(static_cast<std::size_t>(dim)) {}

  std::vector<float> keys;     // [kTileKeys][dim], zero past the head size
  std::vector<float> values;   // [kTileKeys][dim]
  std::vector<float> queries;  // [kTileRows][dim]
  std::vector<float> states;   // [kTileRows][class][dim]: o_C, not yet divided by anything
  std::vector<float> result;   // [dim]
  float maximum[kTileRows];
  float mass[kTileRows][kNumTokenClasses];  // l_C
  alignas(32) float scores[kTileKeys];      // then exp(score - maximum)
  std::uint8_t key_list[kNumTokenClasses][kTileKeys];
};

Sequence describe(const at::Tensor& sink_scores, const at::Tensor& visual_mask, std::int64_t b,
                  std::int64_t length, const RedistributionRule& rule) {
  Sequence sequence;
  sequence.length = length;
  sequence.rule = rule;
  sequence.classes.resize(static_cast<std::size_t>(length));
  sequence.visual_before.resize(static_cast<std::size_t>(length) + 1);
  const float* scores = sink_scores.const_data_ptr<float>() + b * sink_scores.stride(0);
  const bool* visual = visual_mask.const_data_ptr<bool>() + b * visual_mask.stride(0);
  for (std::int64_t j = 0; j < length; ++j) {
    const auto i = static_cast<std::size_t>(j);
    const bool is_visual = visual[j * visual_mask.stride(1)];
    const int key_class = token_class(scores[j * sink_scores.stride(1)], is_visual, rule.tau);
    sequence.classes[i] = static_cast<std::uint8_t>(key_class);
    sequence.visual_before[i + 1] = sequence.visual_before[i] + (is_visual ? 1 : 0);
    if (key_class == static_cast<int>(TokenClass::kVisualSink)) {
      sequence.first_visual_sink = std::min(sequence.first_visual_sink, j);
    }
  }
  return sequence;
}

// Scores of kKeysAtOnce keys that lie `dim` apart.
void dot_products(float* scores, const float* query, const float* keys, std::int64_t dim,
                  float scale) {
  FloatLanes sums[kKeysAtOnce] = {};
  for (std::int64_t d = 0; d < dim; d += kLanes) {
    FloatLanes q;
    load(q, query + d);
    for (std::int64_t k = 0; k < kKeysAtOnce; ++k) {
      FloatLanes x;
      load(x, keys + k * dim + d);
      sums[k] += q * x;
    }
  }
  for (std::int64_t k = 0; k < kKeysAtOnce; ++k) scores[k] = sum_of(sums[k]) * scale;
}

// state[d] = state[d] * correction + sum over the listed keys of weight * value, for `lanes`
// vectors from d on.
template <int lanes>
void add_values(float* state, float correction, const float* values, const float* weights,
                const std::uint8_t* key_list, int count, std::int64_t dim) {
  FloatLanes sums[lanes] = {};
  for (int i = 0; i < count; ++i) {
    const float weight = weights[key_list[i]];
    const float* value = values + key_list[i] * dim;
    for (int k = 0; k < lanes; ++k) {
      FloatLanes x;
      load(x, value + k * kLanes);
      sums[k] += weight * x;
    }
  }
  for (int k = 0; k < lanes; ++k) {
    FloatLanes s;
    load(s, state + k * kLanes);
    store(state + k * kLanes, s * correction + sums[k]);
  }
}

// Turns the tile's scores into exp(score - maximum); returns the factor for everything under the
// old maximum.
float exponentiate(float* scores, float* maximum) {
  float largest = *maximum;
  for (std::int64_t j = 0; j < kTileKeys; ++j) largest = scores[j] > largest ? scores[j] : largest;
  // While nothing but -inf was seen, any finite base gives the zeros that are due, where -inf would
  // give NaN.
  const float base = largest == kMinusInfinity ? 0.0f : largest;
  const float correction = exp_of_non_positive(*maximum - base);
  for (std::int64_t j = 0; j < kTileKeys; ++j) scores[j] = exp_of_non_positive(scores[j] - base);
  *maximum = largest;
  return correction;
}

// Adds the tile's first `visible` keys to the state of one row.
void add_tile(Scratch& s, std::int64_t row, std::int64_t dim, std::int64_t visible,
              const std::uint8_t* classes, float scale) {
  const float* query = s.queries.data() + row * dim;
  for (std::int64_t j = 0; j < visible; j += kKeysAtOnce) {
    dot_products(s.scores + j, query, s.keys.data() + j * dim, dim, scale);
  }
  std::fill(s.scores + visible, s.scores + kTileKeys, kMinusInfinity);
  const float correction = exponentiate(s.scores, &s.maximum[row]);

  int counts[kNumTokenClasses] = {};
  float sums[kNumTokenClasses] = {};
  for (std::int64_t j = 0; j < visible; ++j) {
    const int c = classes[j];
    s.key_list[c][counts[c]++] = static_cast<std::uint8_t>(j);
    sums[c] += s.scores[j];
  }
  for (int c = 0; c < kNumTokenClasses; ++c) {
    s.mass[row][c] = s.mass[row][c] * correction + sums[c];
    float* state = s.states.data() + (row * kNumTokenClasses + c) * dim;
    std::int64_t d = 0;
    for (; d + kLanesAtOnce * kLanes <= dim; d += kLanesAtOnce * kLanes) {
      add_values<kLanesAtOnce>(state + d, correction, s.values.data() + d, s.scores, s.key_list[c],
                               counts[c], dim);
    }
    for (; d < dim; d += kLanes) {
      add_values<1>(state + d, correction, s.values.data() + d, s.scores, s.key_list[c], counts[c],
                    dim);
    }
  }
}

// Merges the four states of a row: out = sum_C w_C o_C / sum_C l_C.
template <typename T>
void finish_row(const Problem<T>& problem, const Sequence& sequence, Scratch& s, std::int64_t row,
                std::int64_t b, std::int64_t h, std::int64_t q) {
  const std::int64_t dim = problem.padded_dim;
  const std::int64_t position = sequence.length - problem.num_rows + q;
  const float* masses = s.mass[row];
  const float total = ((masses[0] + masses[1]) + masses[2]) + masses[3];
  float mass[kNumTokenClasses] = {};
  ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
  if (position < 0 || total == 0.0f) {  // no key, or no score above -inf
    std::fill(s.result.begin(), s.result.end(), 0.0f);
  } else {
    for (int c = 0; c < kNumTokenClasses; ++c) mass[c] = masses[c] / total;
    const bool row_allowed =
        problem.row_mask != nullptr
            ? problem.row_mask[b * problem.row_mask_stride[0] + q * problem.row_mask_stride[1]]
            : sequence.classes[static_cast<std::size_t>(position)] >=
                  static_cast<int>(TokenClass::kTextSink);
    const auto num_visual =
        static_cast<float>(sequence.visual_before[static_cast<std::size_t>(position) + 1]);
    weights = class_weights(mass, sequence.rule, num_visual,
                            row_allowed && sequence.first_visual_sink <= position);
    const float* state = s.states.data() + row * kNumTokenClasses * dim;
    for (std::int64_t d = 0; d < dim; ++d) {
      float sum = weights.weight[0] * state[d];
      for (int c = 1; c < kNumTokenClasses; ++c) sum += weights.weight[c] * state[c * dim + d];
      s.result[static_cast<std::size_t>(d)] = sum / total;
    }
  }
  const std::int64_t index = (b * problem.num_heads + h) * problem.num_rows + q;
  store_floats(problem.out + index * problem.head_dim, s.result.data(), problem.head_dim);
  if (problem.selected != nullptr) problem.selected[index] = weights.selected;
  if (problem.class_mass != nullptr)
    std::copy_n(mass, kNumTokenClasses, problem.class_mass + index * kNumTokenClasses);
}

template <typename T>
void run_row_tile(const Problem<T>& problem, const Sequence& sequence, Scratch& s, std::int64_t b,
                  std::int64_t h, std::int64_t first_row) {
  const std::int64_t dim = problem.padded_dim;
  const std::int64_t rows = std::min(kTileRows, problem.num_rows - first_row);
  const std::int64_t first_position = sequence.length - problem.num_rows + first_row;
  for (std::int64_t i = 0; i < rows; ++i) {
    const T* source = problem.query + b * problem.query_stride[0] + h * problem.query_stride[1] +
                      (first_row + i) * problem.query_stride[2];
    load_floats(s.queries.data() + i * dim, source, problem.head_dim);
    s.maximum[i] = kMinusInfinity;
    std::fill_n(s.mass[i], kNumTokenClasses, 0.0f);
  }
  std::fill(s.states.begin(), s.states.end(), 0.0f);

  const std::int64_t kv_head = h / problem.heads_per_kv_head;
  const T* keys = problem.key + b * problem.key_stride[0] + kv_head * problem.key_stride[1];
  const T* values = problem.value + b * problem.value_stride[0] + kv_head * problem.value_stride[1];
  const std::int64_t num_seen = first_position + rows;  // keys that the last row sees
  for (std::int64_t first_key = 0; first_key < num_seen; first_key += kTileKeys) {
    const std::int64_t count = std::min(kTileKeys, num_seen - first_key);
    for (std::int64_t j = 0; j < count; ++j) {
      load_floats(s.keys.data() + j * dim, keys + (first_key + j) * problem.key_stride[2],
                  problem.head_dim);
      load_floats(s.values.data() + j * dim, values + (first_key + j) * problem.value_stride[2],
                  problem.head_dim);
    }
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t visible = std::min(count, first_position + i + 1 - first_key);
      if (visible > 0)
        add_tile(s, i, dim, visible, sequence.classes.data() + first_key, problem.scale);
    }
  }
  for (std::int64_t i = 0; i < rows; ++i) finish_row(problem, sequence, s, i, b, h, first_row + i);
}

template <typename T>
void run(const Problem<T>& problem, const std::vector<Sequence>& sequences) {
  const std::int64_t tiles = (problem.num_rows + kTileRows - 1) / kTileRows;
  const auto items = static_cast<std::int64_t>(sequences.size()) * problem.num_heads * tiles;
  at::parallel_for(0, items, 1, [&](std::int64_t begin, std::int64_t end) {
    Scratch scratch(problem.padded_dim);
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t b = i / (problem.num_heads * tiles);
      run_row_tile(problem, sequences[static_cast<std::size_t>(b)], scratch, b,
                   i / tiles % problem.num_heads, i % tiles * kTileRows);
    }
  });
}

std::vector<Sequence> describe_sequences(const checks::AttentionTensors& t,
                                         const RedistributionRule& rule) {
  std::vector<Sequence> sequences;
  for (std::int64_t b = 0; b < t.query.size(0); ++b) {
    const std::int64_t length =
        t.kv_lengths.has_value() ? t.kv_lengths->accessor<std::int32_t, 1>()[b] : t.key.size(2);
    RedistributionRule own_rule = rule;
    if (t.params.has_value()) {
      const auto params = t.params->accessor<float, 2>()[b];
      own_rule.tau = params[0];
      own_rule.rho = params[1];
      own_rule.p = params[2];
      own_rule.min_visual_mass = params[3];
    }
    sequences.push_back(describe(t.sink_scores, t.visual_mask, b, length, own_rule));
  }
  return sequences;
}

template <typename T>
Problem<T> make_problem(const checks::AttentionTensors& t, const at::Tensor& out, double scale) {
  Problem<T> problem = {};
  problem.query = t.query.const_data_ptr<T>();
  problem.key = t.key.const_data_ptr<T>();
  problem.value = t.value.const_data_ptr<T>();
  problem.out = out.mutable_data_ptr<T>();
  problem.num_heads = t.query.size(1);
  problem.heads_per_kv_head = t.query.size(1) / t.key.size(1);
  problem.num_rows = t.query.size(2);
  problem.head_dim = t.query.size(3);
  problem.padded_dim = round_up(problem.head_dim, kLanes);
  std::copy_n(t.query.strides().begin(), 3, problem.query_stride);
  std::copy_n(t.key.strides().begin(), 3, problem.key_stride);
  std::copy_n(t.value.strides().begin(), 3, problem.value_stride);
  if (t.row_mask.has_value()) {
    problem.row_mask = t.row_mask->const_data_ptr<bool>();
    std::copy_n(t.row_mask->strides().begin(), 2, problem.row_mask_stride);
  }
  if (t.selected.has_value()) problem.selected = t.selected->mutable_data_ptr<bool>();
  if (t.class_mass.has_value()) problem.class_mass = t.class_mass->mutable_data_ptr<float>();
  problem.scale = static_cast<float>(scale);
  return problem;
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
  at::Tensor out = at::empty(query.sizes(), query.options());
  if (out.numel() == 0) return out;
  const std::vector<Sequence> sequences = describe_sequences(tensors, rule);
  dispatch_floating(query.scalar_type(), [&](auto element) {
    run(make_problem<decltype(element)>(tensors, out, scale), sequences);
  });
  return out;
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_attention", &libvar::cpu::attention_cpu);
}
