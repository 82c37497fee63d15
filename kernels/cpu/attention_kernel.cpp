#include "cpu/attention_kernel.h"

#include "classes.h"
#include "cpu/attention_arithmetic.h"
#include "cpu/attention_softmax.h"
#include "cpu/vector.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

LIBVAR_INLINE std::int64_t least(std::int64_t a, std::int64_t b) {
  return a < b ? a : b;
}

LIBVAR_INLINE std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// One tile and its memory.
template <typename A>
struct Tile {
  using Element = typename A::Element;
  using Factor = typename A::Factor;

  const AttentionCall& call;
  const KeyClasses& keys;
  const Element* key;    // of the head
  const Element* value;  // of the head
  std::int64_t sequence, kv_head, first_row, num_rows, group, padded_dim;
  float* scores;       // [num_rows][score_stride]: scores, then probabilities, then A's factors
  float* queries;      // [num_rows][padded_dim], as A::Factor
  float* totals;       // [num_rows]
  std::int32_t* seen;  // [num_rows]: keys that a row sees; never fewer than the row before
  float* sums;         // [2 or chunks][num_rows][padded_dim]

  Tile(const AttentionCall& c, const AttentionTile& place)
      : call(c),
        keys(c.sequences[place.sequence]),
        key(static_cast<const Element*>(c.key) + place.sequence * c.key_stride[0] +
            place.kv_head * c.key_stride[1]),
        value(static_cast<const Element*>(c.value) + place.sequence * c.value_stride[0] +
              place.kv_head * c.value_stride[1]),
        sequence(place.sequence),
        kv_head(place.kv_head),
        first_row(place.first_row),
        num_rows(place.end_row - place.first_row),
        group(c.num_heads / c.num_kv_heads),
        padded_dim(round_up(c.head_dim, A::kDimStep)),
        scores(place.scratch),
        queries(scores + num_rows * c.score_stride),
        totals(queries + num_rows * padded_dim),
        seen(reinterpret_cast<std::int32_t*>(totals + num_rows)),
        sums(totals + 2 * num_rows) {}

  std::int64_t num_keys() const { return seen[num_rows - 1]; }

  std::int64_t query_row(std::int64_t row) const { return (first_row + row) / group; }

  std::int64_t head(std::int64_t row) const { return kv_head * group + (first_row + row) % group; }

  float* scores_of(std::int64_t row) const { return scores + row * call.score_stride; }

  Factor* query_of(std::int64_t row) const {
    return reinterpret_cast<Factor*>(queries + row * padded_dim);
  }

  Factor* factors_of(std::int64_t row) const { return reinterpret_cast<Factor*>(scores_of(row)); }

  float* sums_at(std::int64_t index) const { return sums + index * num_rows * padded_dim; }
};

template <typename A>
void prepare(const Tile<A>& tile) {
  const AttentionCall& c = tile.call;
  const auto* query = static_cast<const typename A::Element*>(c.query);
  for (std::int64_t row = 0; row < tile.num_rows; ++row) {
    const std::int64_t position = tile.keys.length - c.num_rows + tile.query_row(row);
    tile.seen[row] = position < 0 ? 0 : static_cast<std::int32_t>(position + 1);
    const auto* source = query + tile.sequence * c.query_stride[0] +
                         tile.head(row) * c.query_stride[1] +
                         tile.query_row(row) * c.query_stride[2];
    A::copy_query(tile.query_of(row), source, c.head_dim);
  }
}

// ---- Prefetching
//
// The processor's own prefetching stops at every page of memory. A tile reads all its keys, then
// all its values, then the next head's keys; what lies kAhead keys ahead in that order is asked
// for, so that memory is never idle.

constexpr std::int64_t kAhead = 32;

template <typename Element>
LIBVAR_INLINE void prefetch(const Element* row, std::int64_t dim) {
  constexpr std::int64_t kLine = 64 / sizeof(Element);
  for (std::int64_t d = 0; d < dim; d += kLine) __builtin_prefetch(row + d);
}

template <typename A>
LIBVAR_INLINE void prefetch_after_key(const Tile<A>& tile, std::int64_t key) {
  const AttentionCall& c = tile.call;
  const std::int64_t next = key + kAhead;
  const std::int64_t num_keys = tile.num_keys();
  prefetch(next < num_keys ? tile.key + next * c.key_stride[2]
                           : tile.value + (next - num_keys) * c.value_stride[2],
           c.head_dim);
}

// Dimensions [d, d + count) of it.
template <typename A>
LIBVAR_INLINE void prefetch_after_value(const Tile<A>& tile, std::int64_t key, std::int64_t d,
                                        std::int64_t count) {
  const AttentionCall& c = tile.call;
  const std::int64_t next = key + kAhead;
  const std::int64_t num_keys = tile.num_keys();
  prefetch(d + (next < num_keys ? tile.value + next * c.value_stride[2]
                                : tile.key + c.key_stride[1] + (next - num_keys) * c.key_stride[2]),
           count);
}

// ---- Scores

template <typename A, int rows>
LIBVAR_INLINE void dot_any_dim(Floats (&sums)[rows], const typename A::Factor* query,
                               std::int64_t query_stride, const typename A::Element* key,
                               std::int64_t dim) {
  std::int64_t d = 0;
  for (; d + A::kDimStep <= dim; d += A::kDimStep) {
    const typename A::Vector x = A::load_vector(key + d);
    for (int r = 0; r < rows; ++r) {
      sums[r] = A::dot(A::load_vector(query + r * query_stride + d), x, sums[r]);
    }
  }
  if (d == dim) return;
  const typename A::Vector x = A::load_vector_partial(key + d, dim - d);
  for (int r = 0; r < rows; ++r) {
    sums[r] = A::dot(A::load_vector(query + r * query_stride + d), x, sums[r]);
  }
}

// Scores of `rows` rows and kLanes / rows keys from first_key on. Of the keys, only `num_keys` are
// there; nobody uses the scores of the others.
template <typename A, int rows, int dim_steps, bool all_there>
LIBVAR_INLINE void score_block(const Tile<A>& tile, std::int64_t row, std::int64_t first_key,
                               std::int64_t num_keys) {
  constexpr int kKeys = kLanes / rows;
  const std::int64_t stride = tile.call.key_stride[2];
  const std::int64_t dim = tile.call.head_dim;
  const typename A::Element* key = tile.key + first_key * stride;
  const typename A::Factor* const query = tile.query_of(row);
  const std::int64_t query_stride = tile.query_of(1) - tile.query_of(0);
  Floats dots[kLanes];
#pragma GCC unroll 16
  for (int k = 0; k < kKeys; ++k) {
    Floats sums[rows] = {};
    if (all_there || k < num_keys) {
#pragma GCC unroll 16
      for (int i = 0; i < dim_steps; ++i) {
        const typename A::Vector x = A::load_vector(key + i * A::kDimStep);
#pragma GCC unroll 2
        for (int r = 0; r < rows; ++r) {
          sums[r] = A::dot(A::load_vector(query + r * query_stride + i * A::kDimStep), x, sums[r]);
        }
      }
      if (dim_steps == 0) dot_any_dim<A, rows>(sums, query, query_stride, key, dim);
    }
#pragma GCC unroll 2
    for (int r = 0; r < rows; ++r) dots[r * kKeys + k] = sums[r];
    key += stride;
  }
  const Floats scores = sums_of(dots) * tile.call.scale;
#pragma GCC unroll 2
  for (std::int64_t r = 0; r < rows; ++r) {
    __builtin_memcpy(tile.scores_of(row + r) + first_key,
                     reinterpret_cast<const float*>(&scores) + r * kKeys, kKeys * sizeof(float));
  }
}

template <typename A, int dim_steps>
void score_keys(const Tile<A>& tile, std::int64_t begin, std::int64_t end) {
  const std::int64_t num_keys = least(end, tile.num_keys());
  constexpr int kHalf = kLanes / 2;
  for (std::int64_t first = begin; first < num_keys; first += kLanes) {
    for (int k = 0; k < kLanes; ++k) prefetch_after_key(tile, first + k);
    const std::int64_t there = num_keys - first;
    std::int64_t row = 0;
    for (; row + 2 <= tile.num_rows; row += 2) {
      if (tile.seen[row + 1] <= first) continue;
      if (there >= kLanes) {
        score_block<A, 2, dim_steps, true>(tile, row, first, there);
        score_block<A, 2, dim_steps, true>(tile, row, first + kHalf, there);
      } else {
        score_block<A, 2, 0, false>(tile, row, first, there);
        score_block<A, 2, 0, false>(tile, row, first + kHalf, there - kHalf);
      }
    }
    if (row == tile.num_rows) continue;
    if (there >= kLanes) {
      score_block<A, 1, dim_steps, true>(tile, row, first, there);
    } else {
      score_block<A, 1, 0, false>(tile, row, first, there);
    }
  }
}

// Scores of the keys [begin, end).
template <typename A>
void score_keys(const Tile<A>& tile, std::int64_t begin, std::int64_t end) {
  switch (tile.call.head_dim) {
    case 128:
      return score_keys<A, 128 / A::kDimStep>(tile, begin, end);
    case 64:
      return score_keys<A, 64 / A::kDimStep>(tile, begin, end);
    default:
      return score_keys<A, 0>(tile, begin, end);
  }
}

// ---- Classes and weights of rows

template <typename A>
bool row_is_eligible(const Tile<A>& tile, std::int64_t row) {
  const std::int64_t position = tile.seen[row] - 1;
  if (tile.keys.first_visual_sink > position) return false;
  const AttentionCall& c = tile.call;
  if (c.row_mask != nullptr) {
    return c.row_mask[tile.sequence * c.row_mask_stride[0] +
                      tile.query_row(row) * c.row_mask_stride[1]];
  }
  return tile.keys.classes[position] >= static_cast<int>(TokenClass::kTextSink);
}

float count_visual(const KeyClasses& keys, std::int64_t num_keys) {
  std::int32_t count = 0;
  for (std::int64_t j = 0; j < num_keys; ++j) {
    count += keys.classes[j] < static_cast<int>(TokenClass::kTextSink) ? 1 : 0;
  }
  return static_cast<float>(count);
}

// The weights of a row's classes from their masses; writes what the caller wants to know of the
// row.
template <typename A>
LIBVAR_INLINE ClassWeights weights_of_row(const Tile<A>& tile, std::int64_t row,
                                          const float mass[kNumTokenClasses], float total) {
  const AttentionCall& c = tile.call;
  ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
  float share[kNumTokenClasses] = {};
  if (total != 0.0f) {
    for (int i = 0; i < kNumTokenClasses; ++i) share[i] = mass[i] / total;
    const RedistributionRule& rule = tile.keys.rule;
    const float num_visual =
        rule.ratio_epsilon > 0.0f ? count_visual(tile.keys, tile.seen[row]) : 0.0f;
    weights = class_weights(share, rule, num_visual, row_is_eligible(tile, row));
  }
  if (c.selected == nullptr && c.class_mass == nullptr) return weights;
  const std::int64_t index =
      (tile.sequence * c.num_heads + tile.head(row)) * c.num_rows + tile.query_row(row);
  if (c.selected != nullptr) c.selected[index] = weights.selected;
  if (c.class_mass != nullptr) {
    for (int i = 0; i < kNumTokenClasses; ++i) {
      c.class_mass[index * kNumTokenClasses + i] = share[i];
    }
  }
  return weights;
}

// Scores of `rows` rows that see the same keys -> factors of their values.
template <int rows, typename A>
void weigh(const Tile<A>& tile, std::int64_t row) {
  const std::int64_t num_seen = tile.seen[row];
  const std::int64_t num_full = num_seen / kKeyBlock;
  const std::int64_t num_blocks = (num_seen + kKeyBlock - 1) / kKeyBlock;
  const std::int64_t stride = tile.call.score_stride;
  float* const scores = tile.scores_of(row);
  float base[rows];
  for (int r = 0; r < rows; ++r) {
    float* const own = scores + r * stride;
    for (std::int64_t j = num_seen; j < num_blocks * kKeyBlock; ++j) own[j] = -kInfinity;
    const float largest = largest_score(own, num_blocks);
    // While nothing but -inf was seen, any finite base gives the zeros that are due, where -inf
    // would give NaN.
    base[r] = largest == -kInfinity ? 0.0f : largest;
  }
  if (!tile.call.with_classes) {
    float total[rows];
    exponentiate(total, scores, stride, base, num_blocks);
    for (int r = 0; r < rows; ++r) {
      tile.totals[row + r] = total[r];
      A::make_factors(scores + r * stride, num_blocks);
    }
    return;
  }
  float mass[rows][kNumTokenClasses];
  exponentiate_classes(mass, scores, stride, base, tile.keys, num_full, num_blocks);
  for (int r = 0; r < rows; ++r) {
    float* const own = scores + r * stride;
    const float total = ((mass[r][0] + mass[r][1]) + mass[r][2]) + mass[r][3];
    tile.totals[row + r] = total;
    const ClassWeights weights = weights_of_row(tile, row + r, mass[r], total);
    if (!weights.selected) {
      A::make_factors(own, num_blocks);
      continue;
    }
    weigh_mixed_blocks(own, tile.keys, num_full, num_blocks, weights.weight);
    float block_weight[kNumTokenClasses + 1];
    for (int i = 0; i < kNumTokenClasses; ++i) block_weight[i] = weights.weight[i];
    block_weight[kMixedBlock] = 1.0f;
    A::make_weighted_factors(own, num_full, num_blocks, tile.keys.block_classes, block_weight);
  }
}

// Rows [begin, end) of the tile, those that see the same keys together.
template <typename A>
void weigh_rows(const Tile<A>& tile, std::int64_t begin, std::int64_t end) {
  const auto alike = [&](std::int64_t row, std::int64_t count) {
    return row + count <= end && tile.seen[row] == tile.seen[row + count - 1];
  };
  for (std::int64_t row = begin; row < end;) {
    if (alike(row, 4)) {
      weigh<4>(tile, row);
      row += 4;
    } else if (alike(row, 2)) {
      weigh<2>(tile, row);
      row += 2;
    } else {
      weigh<1>(tile, row);
      row += 1;
    }
  }
}

// ---- Values

// sums[r][...] += factors * values over the keys [begin, end), for `rows` rows and `units` units of
// A::kDimStep dimensions from `d` on; the last one has only `count` dimensions where partial_unit.
// begin is a multiple of A::kKeysAtOnce.
template <typename A, int rows, int units, bool partial_unit>
void add_values(const Tile<A>& tile, std::int64_t row, std::int64_t begin, std::int64_t end,
                float* sums, bool fresh, std::int64_t d, std::int64_t count) {
  using Element = typename A::Element;
  const std::int64_t stride = tile.call.value_stride[2];
  const Element* value = tile.value + begin * stride + d;
  const typename A::Factor* factors = tile.factors_of(row);
  const std::int64_t factor_stride = tile.factors_of(1) - tile.factors_of(0);
  float* const target = sums + row * tile.padded_dim + d;

  typename A::Sums s[rows][units];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < units; ++u) {
      s[r][u] =
          fresh ? typename A::Sums{} : A::load_sums(target + r * tile.padded_dim + u * A::kDimStep);
    }
  }
  const auto add_keys = [&](const Element* first, const Element* second, std::int64_t j) {
    typename A::KeyFactors f[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) f[r] = A::load_factors(factors + r * factor_stride + j);
#pragma GCC unroll 8
    for (int u = 0; u < units; ++u) {
      const auto v = partial_unit
                         ? A::load_values_partial(first, second, count)
                         : A::load_values(first + u * A::kDimStep, second + u * A::kDimStep);
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r) A::add(s[r][u], f[r], v);
    }
  };
  std::int64_t j = begin;
  for (; j + A::kKeysAtOnce <= end; j += A::kKeysAtOnce) {
    if (row == 0) {  // the other rows find the values in the cache
      for (int k = 0; k < A::kKeysAtOnce; ++k) {
        prefetch_after_value(tile, j + k, d, units * A::kDimStep);
      }
    }
    add_keys(value, value + stride, j);
    value += A::kKeysAtOnce * stride;
  }
  // A last key without a partner: its partner's factor is 0, but its value may be anything.
  if (j < end) add_keys(value, A::zeros(), j);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < units; ++u) {
      A::store_sums(target + r * tile.padded_dim + u * A::kDimStep, s[r][u]);
    }
  }
}

template <typename A, int rows>
void add_values_of_rows(const Tile<A>& tile, std::int64_t row, std::int64_t begin, std::int64_t end,
                        float* sums, bool fresh) {
  constexpr int kUnits = A::template units_at_once<rows>();
  constexpr std::int64_t kWide = kUnits * A::kDimStep;
  const std::int64_t dim = tile.call.head_dim;
  std::int64_t d = 0;
  for (; d + kWide <= dim; d += kWide) {
    add_values<A, rows, kUnits, false>(tile, row, begin, end, sums, fresh, d, 0);
  }
  for (; d + A::kDimStep <= dim; d += A::kDimStep) {
    add_values<A, rows, 1, false>(tile, row, begin, end, sums, fresh, d, 0);
  }
  if (d < dim) add_values<A, rows, 1, true>(tile, row, begin, end, sums, fresh, d, dim - d);
}

// The keys [begin, end) for `rows` rows: together as far as all of them see, then one by one.
template <typename A, int rows>
void add_chunk_of_rows(const Tile<A>& tile, std::int64_t row, std::int64_t begin, std::int64_t end,
                       float* sums) {
  const std::int64_t common = least(end, tile.seen[row] / A::kKeysAtOnce * A::kKeysAtOnce);
  const bool together = common > begin;
  if (together) add_values_of_rows<A, rows>(tile, row, begin, common, sums, true);
  const std::int64_t next = together ? common : begin;
  for (int r = 0; r < rows; ++r) {
    const std::int64_t own_end = least(end, tile.seen[row + r]);
    if (own_end > next) add_values_of_rows<A, 1>(tile, row + r, next, own_end, sums, !together);
  }
}

// sums = factors * values over one chunk of the keys. Rows that see nothing of it are left out.
template <typename A>
void add_chunk(const Tile<A>& tile, std::int64_t chunk, float* sums) {
  const std::int64_t begin = chunk * kKeyChunk;
  const std::int64_t end = least(begin + kKeyChunk, tile.num_keys());
  if (end <= begin) return;
  std::int64_t row = 0;
  for (; row + 4 <= tile.num_rows; row += 4) add_chunk_of_rows<A, 4>(tile, row, begin, end, sums);
  if (row + 2 <= tile.num_rows) {
    add_chunk_of_rows<A, 2>(tile, row, begin, end, sums);
    row += 2;
  }
  if (row < tile.num_rows) add_chunk_of_rows<A, 1>(tile, row, begin, end, sums);
}

// Adds a later chunk's sums of one row to those of the first.
template <typename A>
void merge_chunk(const Tile<A>& tile, std::int64_t row, std::int64_t chunk, const float* sums) {
  if (tile.seen[row] <= chunk * kKeyChunk) return;
  float* target = tile.sums + row * tile.padded_dim;
  const float* source = sums + row * tile.padded_dim;
  for (std::int64_t d = 0; d < tile.padded_dim; d += kLanes) {
    store(target + d, load(target + d) + load(source + d));
  }
}

template <typename A>
void add_all_values(const Tile<A>& tile) {
  add_chunk(tile, 0, tile.sums);
  for (std::int64_t chunk = 1; chunk * kKeyChunk < tile.num_keys(); ++chunk) {
    add_chunk(tile, chunk, tile.sums_at(1));
    for (std::int64_t row = 0; row < tile.num_rows; ++row) {
      merge_chunk(tile, row, chunk, tile.sums_at(1));
    }
  }
}

template <typename A>
void write_row(const Tile<A>& tile, std::int64_t row) {
  const AttentionCall& c = tile.call;
  const std::int64_t index =
      (tile.sequence * c.num_heads + tile.head(row)) * c.num_rows + tile.query_row(row);
  auto* out = static_cast<typename A::Element*>(c.out) + index * c.head_dim;
  float* sums = tile.sums + row * tile.padded_dim;
  const float total = tile.totals[row];
  const bool empty = total == 0.0f;  // no key, or no score above -inf
  if (!empty) A::order_sums(sums, tile.padded_dim);
  std::int64_t d = 0;
  for (; d + kLanes <= c.head_dim; d += kLanes) {
    store(out + d, empty ? Floats{} : load(sums + d) / total);
  }
  if (d < c.head_dim) {
    store_partial(out + d, empty ? Floats{} : load(sums + d) / total, c.head_dim - d);
  }
}

template <typename A>
void attend_all(const AttentionCall& call, const AttentionTile& place) {
  const Tile<A> tile(call, place);
  prepare(tile);
  score_keys(tile, 0, tile.num_keys());
  weigh_rows(tile, 0, tile.num_rows);
  add_all_values(tile);
  for (std::int64_t row = 0; row < tile.num_rows; ++row) write_row(tile, row);
}

template <typename A>
void attend_part(const AttentionCall& call, const AttentionTile& place, AttentionStep step,
                 std::int64_t begin, std::int64_t end) {
  const Tile<A> tile(call, place);
  switch (step) {
    case AttentionStep::kPrepare:
      return prepare(tile);
    case AttentionStep::kScores:
      return score_keys(tile, begin * kKeyChunk, end * kKeyChunk);
    case AttentionStep::kWeights:
      return weigh_rows(tile, begin, end);
    case AttentionStep::kValues:
      for (std::int64_t chunk = begin; chunk < end; ++chunk) {
        add_chunk(tile, chunk, tile.sums_at(chunk));
      }
      return;
    case AttentionStep::kFinish:
      for (std::int64_t row = begin; row < end; ++row) {
        for (std::int64_t chunk = 1; chunk * kKeyChunk < tile.seen[row]; ++chunk) {
          merge_chunk(tile, row, chunk, tile.sums_at(chunk));
        }
        write_row(tile, row);
      }
      return;
  }
}

// Calls f with the arithmetic of an element type.
template <typename F>
LIBVAR_INLINE void with_arithmetic(ElementType type, F&& f) {
  switch (type) {
    case ElementType::kFloat:
      return f(FloatArithmetic<float>());
    case ElementType::kHalf:
      return f(FloatArithmetic<Half>());
    case ElementType::kBfloat16:
      return f(Bfloat16Arithmetic());
  }
}

}  // namespace

void attend(const AttentionCall& call, const AttentionTile& tile) {
  with_arithmetic(call.type,
                  [&](auto arithmetic) { attend_all<decltype(arithmetic)>(call, tile); });
}

void attend_step(const AttentionCall& call, const AttentionTile& tile, AttentionStep step,
                 std::int64_t begin, std::int64_t end) {
  with_arithmetic(call.type, [&](auto arithmetic) {
    attend_part<decltype(arithmetic)>(call, tile, step, begin, end);
  });
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
