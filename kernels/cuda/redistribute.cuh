#pragma once

// Redistribution of given probabilities (ops.h: redistribute). No torch.

#include "classes.h"
#include "cuda/persistent.cuh"
#include "cuda/redistribute.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kRedistributeWarps = 8;          // of a long row
inline constexpr int kRedistributeWarpsPerBlock = 4;  // at least: rows of one warp share a block
inline constexpr int kRedistributeLongUnroll = 4;     // vectors in flight in a thread

/// Turns: the sums of one row are read while those of the next are written.
struct alignas(16) RedistributeShared {
  float sums[2][kRedistributeWarps][kNumTokenClasses];
};

/// Rows in the order b, i, h, so that the rows of a mask's true entries, which are mostly a span
/// at the end, fall evenly on groups that take every `step`-th one.
struct RowCursor {
  int batch;
  int row;
  int head;
  int batch_step;
  int row_step;
  int head_step;

  template <typename Arguments>
  LIBVAR_DEVICE RowCursor(const Arguments& args, unsigned first, unsigned step) {
    const auto num_heads = static_cast<unsigned>(args.num_heads);
    const auto num_rows = static_cast<unsigned>(args.num_rows);
    head = static_cast<int>(first % num_heads);
    row = static_cast<int>(first / num_heads % num_rows);
    batch = static_cast<int>(first / num_heads / num_rows);
    head_step = static_cast<int>(step % num_heads);
    row_step = static_cast<int>(step / num_heads % num_rows);
    batch_step = static_cast<int>(step / num_heads / num_rows);
  }

  template <typename Arguments>
  LIBVAR_DEVICE void advance(const Arguments& args) {
    const auto num_heads = static_cast<int>(args.num_heads);
    const auto num_rows = static_cast<int>(args.num_rows);
    head += head_step;
    row += row_step;
    batch += batch_step;
    if (head >= num_heads) head -= num_heads, ++row;
    if (row >= num_rows) row -= num_rows, ++batch;
  }
};

/// What a sequence's keys say of all its rows.
struct SequenceFacts {
  float num_visual_keys = 0.0f;
  bool has_visual_sink = false;
};

/// Classes of the elements of one vector, two bits each; kPure<T> * c where all are of class c.
template <typename T>
inline constexpr std::uint32_t kPure = sizeof(T) == 2 ? 0x5555u : 0x55u;

/// Scores and visual flags of the keys of one vector.
template <typename T>
struct TokenVector {
  float scores[kVectorSize<T>];
  bool visual[kVectorSize<T>];

  LIBVAR_DEVICE TokenVector(const RedistributeArguments<T>& args, int b, int first, int last) {
    constexpr int kElements = kVectorSize<T>;
    const float* scores_row = args.sink_scores + args.sink_scores_stride.offset(b, 0);
    const bool* visual_row = args.visual_mask + args.visual_mask_stride.offset(b, 0);
    if (args.sink_scores_stride.token == 1 && is_vector_aligned(scores_row) && last == kElements) {
      LIBVAR_UNROLL
      for (int e = 0; e < kElements; e += 4) {
        const Vector four = load_vector(scores_row, first + e, first + kElements, true);
        LIBVAR_UNROLL
        for (int i = 0; i < 4; ++i) scores[e + i] = __uint_as_float(four.word[i]);
      }
    } else {
      LIBVAR_UNROLL
      for (int e = 0; e < kElements; ++e) {
        scores[e] = e < last ? scores_row[args.sink_scores_stride.offset(0, first + e)] : 0.0f;
      }
    }
    using Flags = std::conditional_t<kElements == 8, std::uint64_t, std::uint32_t>;
    if (args.visual_mask_stride.token == 1 && last == kElements &&
        reinterpret_cast<std::uintptr_t>(visual_row) % sizeof(Flags) == 0) {
      const auto flags = *reinterpret_cast<const MayAlias<Flags>*>(visual_row + first);
      LIBVAR_UNROLL
      for (int e = 0; e < kElements; ++e) visual[e] = (flags >> 8 * e & 1u) != 0;
    } else {
      LIBVAR_UNROLL
      for (int e = 0; e < kElements; ++e)
        visual[e] = e < last && visual_row[args.visual_mask_stride.offset(0, first + e)];
    }
  }
};

/// Classes of the keys first, first + 1, ..., counted in the first two of `counts`. Past the last
/// key the class repeats, so that a vector of one class stays one.
template <typename T>
LIBVAR_DEVICE std::uint32_t class_word(const RedistributeArguments<T>& args, int b, int first,
                                       float (&counts)[kNumTokenClasses]) {
  constexpr int kElements = kVectorSize<T>;
  const int left = static_cast<int>(args.num_keys) - first;
  if (left <= 0) return kPure<T> * static_cast<unsigned>(TokenClass::kTextNonSink);
  const int last = left < kElements ? left : kElements;
  const TokenVector<T> tokens(args, b, first, last);
  std::uint32_t word = 0;
  int own_class = 0;
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    if (e < last) {
      own_class = token_class(tokens.scores[e], tokens.visual[e], args.rule.tau);
      counts[0] += own_class <= static_cast<int>(TokenClass::kVisualNonSink) ? 1.0f : 0.0f;
      counts[1] += own_class == static_cast<int>(TokenClass::kVisualSink) ? 1.0f : 0.0f;
    }
    word |= static_cast<std::uint32_t>(own_class) << 2 * e;
  }
  return word;
}

/// Adds a vector's elements to the masses of their classes. Nearly every vector is of one class.
template <typename T>
LIBVAR_DEVICE void add_vector(const Vector& vector, std::uint32_t classes,
                              float (&mass)[kNumTokenClasses]) {
  constexpr int kElements = kVectorSize<T>;
  float x[kElements];
  unpack<T>(vector, x);
  if (classes == (classes & 3u) * kPure<T>) {
    float sum = x[0];
    LIBVAR_UNROLL
    for (int e = 1; e < kElements; ++e) sum += x[e];
    LIBVAR_UNROLL
    for (int c = 0; c < kNumTokenClasses; ++c)
      mass[c] += (classes & 3u) == static_cast<unsigned>(c) ? sum : 0.0f;
  } else {
    LIBVAR_UNROLL
    for (int e = 0; e < kElements; ++e) {
      LIBVAR_UNROLL
      for (int c = 0; c < kNumTokenClasses; ++c)
        mass[c] += (classes >> 2 * e & 3u) == static_cast<unsigned>(c) ? x[e] : 0.0f;
    }
  }
}

LIBVAR_DEVICE float weight_of(const ClassWeights& weights, unsigned own_class) {
  float weight = weights.weight[0];
  LIBVAR_UNROLL
  for (int c = 1; c < kNumTokenClasses; ++c)
    weight = own_class == static_cast<unsigned>(c) ? weights.weight[c] : weight;
  return weight;
}

/// Multiplies by the class weights. Elements whose weight is 1 keep their bits. False where that
/// is all of them.
template <typename T>
LIBVAR_DEVICE bool rescale_vector(Vector& vector, std::uint32_t classes,
                                  const ClassWeights& weights) {
  constexpr int kElements = kVectorSize<T>;
  float x[kElements];
  if (classes == (classes & 3u) * kPure<T>) {
    const float weight = weight_of(weights, classes & 3u);
    if (weight == 1.0f) return false;
    unpack<T>(vector, x);
    LIBVAR_UNROLL
    for (int e = 0; e < kElements; ++e) x[e] *= weight;
    vector = pack<T>(x);
    return true;
  }
  unpack<T>(vector, x);
  std::uint32_t scaled[4] = {};  // the bits of the elements that change
  LIBVAR_UNROLL
  for (int e = 0; e < kElements; ++e) {
    const float weight = weight_of(weights, classes >> 2 * e & 3u);
    x[e] *= weight;
    const std::uint32_t element = sizeof(T) == 2 ? 0xffffu << e % 2 * 16 : 0xffffffffu;
    if (weight != 1.0f) scaled[e * 4 / kElements] |= element;
  }
  const Vector product = pack<T>(x);
  LIBVAR_UNROLL
  for (int w = 0; w < 4; ++w)
    vector.word[w] = (vector.word[w] & ~scaled[w]) | (product.word[w] & scaled[w]);
  return true;
}

/// Sums over the kWarps warps of a row, the same bits in every thread; one barrier if there are
/// several. Two exchanges leave each lane with one of the four sums, so that 6 shuffles do what
/// would take 20.
template <int kWarps>
LIBVAR_DEVICE void sum_over_row(float (&x)[kNumTokenClasses], RedistributeShared& shared,
                                int& turn) {
  static_assert(kNumTokenClasses == 4);
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const bool upper = (lane & 16) != 0;
  const float first = (upper ? x[2] : x[0]) + __shfl_xor_sync(kFullWarp, upper ? x[0] : x[2], 16);
  const float second = (upper ? x[3] : x[1]) + __shfl_xor_sync(kFullWarp, upper ? x[1] : x[3], 16);
  const bool odd = (lane & 8) != 0;
  float sum = (odd ? second : first) + __shfl_xor_sync(kFullWarp, odd ? first : second, 8);
  LIBVAR_UNROLL
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  if constexpr (kWarps == 1) {
    LIBVAR_UNROLL
    for (int c = 0; c < kNumTokenClasses; ++c) x[c] = __shfl_sync(kFullWarp, sum, 8 * c);
  } else {
    float(&sums)[kRedistributeWarps][kNumTokenClasses] = shared.sums[turn];
    turn ^= 1;
    if (lane % 8 == 0) sums[threadIdx.x / kWarpSize][lane / 8] = sum;
    __syncthreads();
    LIBVAR_UNROLL
    for (int c = 0; c < kNumTokenClasses; ++c) {
      x[c] = sums[0][c];
      LIBVAR_UNROLL
      for (int w = 1; w < kWarps; ++w) x[c] += sums[w][c];
    }
  }
}

/// Whether a row's own sums are needed: nothing else can make it selected.
template <typename T>
LIBVAR_DEVICE bool may_change(const RedistributeArguments<T>& args, const RowCursor& row,
                              const SequenceFacts& facts) {
  return args.rule.head_rule != HeadRule::kNone && facts.has_visual_sink &&
         (args.row_mask == nullptr ||
          args.row_mask[args.row_mask_stride.offset(row.batch, row.row)]);
}

/// The class words of one thread's vectors, several in a register.
template <typename T, int kVectors>
struct ClassWords {
  static constexpr int kBits = 2 * kVectorSize<T>;
  static constexpr int kInRegister = 32 / kBits;
  static constexpr int kRegisters = (kVectors + kInRegister - 1) / kInRegister;
  static constexpr int kPlaces = kRegisters * kInRegister;  // at least kVectors
  std::uint32_t registers[kRegisters];

  LIBVAR_DEVICE std::uint32_t get(int v) const {
    return registers[v / kInRegister] >> v % kInRegister * kBits & ((1u << kBits) - 1);
  }

  /// Adds a word behind the others and drops the first: the registers are one long shift register,
  /// so that a loop that is not unrolled can fill it.
  LIBVAR_DEVICE void push(std::uint32_t word) {
    LIBVAR_UNROLL
    for (int r = 0; r < kRegisters; ++r) {
      const std::uint32_t next = r + 1 < kRegisters ? registers[r + 1] : word;
      registers[r] = registers[r] >> kBits | next << (32 - kBits);
    }
  }

  LIBVAR_DEVICE void forget_derived() {
    LIBVAR_UNROLL
    for (std::uint32_t& word : registers) cuda::forget_derived(word);
  }
};

template <int kWarps>
inline constexpr int kRedistributeThreads = kWarpSize*(kWarps > kRedistributeWarpsPerBlock
                                                           ? kWarps
                                                           : kRedistributeWarpsPerBlock);

/// Blocks that a multiprocessor shall hold: bounds the registers, without which ptxas takes up to
/// twice as many for nothing.
template <int kWarps, int kVectors>
inline constexpr int kRedistributeBlocks = (kVectors <= 4 ? 8 : 6) *
                                           128 / kRedistributeThreads<kWarps>;

// Work: kWarps warps take one row at a time, the blocks stay and loop over the rows. Thread t of a
// row owns the vectors t, t + 32 kWarps, ... of every row, so it classifies their keys once per
// sequence. Rows that cannot be selected are copied, or in place not visited. Memory: the row waits
// for its sums in registers; each probability is read once and written once, in place only the
// vectors of selected rows that change.
template <typename T, int kWarps, int kVectors>
__global__ void __launch_bounds__(kRedistributeThreads<kWarps>,
                                  kRedistributeBlocks<kWarps, kVectors>)
    redistribute_kernel(RedistributeArguments<T> args) {
  constexpr int kRowThreads = kWarps * kWarpSize;
  constexpr int kGroups = kRedistributeThreads<kWarps> / kRowThreads;
  auto& shared = dynamic_shared<RedistributeShared>();
  const int thread = static_cast<int>(threadIdx.x) % kRowThreads;
  const int num_keys = static_cast<int>(args.num_keys);
  const bool in_place = args.out == args.probs;
  int turn = 0;
  int classified = -1;
  SequenceFacts facts;
  ClassWords<T, kVectors> classes = {};

  RowCursor row(args, blockIdx.x * kGroups + threadIdx.x / kRowThreads, gridDim.x * kGroups);
  for (; row.batch < args.batch; row.advance(args)) {
    if (row.batch != classified) {
      classified = row.batch;
      float counts[kNumTokenClasses] = {};
      LIBVAR_NO_UNROLL
      for (int v = 0; v < classes.kPlaces; ++v) {
        const int first = (v * kRowThreads + thread) * kVectorSize<T>;
        classes.push(class_word(args, row.batch, first, counts));
      }
      sum_over_row<kWarps>(counts, shared, turn);
      facts = {counts[0], counts[1] > 0.0f};
    }
    const bool sums_needed = may_change(args, row, facts);
    if (in_place && !sums_needed) continue;

    const T* probs = args.probs + args.probs_stride.offset(row.batch, row.head, row.row);
    T* out = args.out + args.out_stride.offset(row.batch, row.head, row.row);
    const bool probs_aligned = is_vector_aligned(probs);
    Vector elements[kVectors];
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int first = (v * kRowThreads + thread) * kVectorSize<T>;
      elements[v] = load_vector(probs, first, num_keys, probs_aligned);
    }
    ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
    if (sums_needed) {
      float mass[kNumTokenClasses] = {};
      classes.forget_derived();
      LIBVAR_UNROLL
      for (int v = 0; v < kVectors; ++v) add_vector<T>(elements[v], classes.get(v), mass);
      sum_over_row<kWarps>(mass, shared, turn);
      weights = class_weights(mass, args.rule, facts.num_visual_keys, true);
    }
    if (in_place && !weights.selected) continue;

    const bool out_aligned = is_vector_aligned(out);
    classes.forget_derived();
    LIBVAR_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int first = (v * kRowThreads + thread) * kVectorSize<T>;
      forget_derived(elements[v]);
      const bool changed =
          weights.selected && rescale_vector<T>(elements[v], classes.get(v), weights);
      if (changed || !in_place) store_vector(out, first, num_keys, out_aligned, elements[v]);
    }
  }
}

/// The shared memory of a long row: class words of all its vectors, then the row itself, as far as
/// there is room.
template <typename T>
struct LongRow {
  std::uint16_t* classes;  // one for each vector, or null
  Vector* elements;        // the same, or null

  static LIBVAR_HOST_DEVICE std::size_t class_bytes(std::int64_t num_keys) {
    const std::size_t num_vectors = (static_cast<std::size_t>(num_keys) * sizeof(T) + 15) / 16;
    return (num_vectors * sizeof(std::uint16_t) + 15) / 16 * 16;
  }

  static LIBVAR_HOST_DEVICE std::size_t row_bytes(std::int64_t num_keys) {
    return (static_cast<std::size_t>(num_keys) * sizeof(T) + 15) / 16 * 16;
  }

  LIBVAR_DEVICE LongRow(const RedistributeArguments<T>& args, RedistributeShared& shared) {
    auto* memory = reinterpret_cast<unsigned char*>(&shared + 1);
    classes = args.keeps_classes ? reinterpret_cast<std::uint16_t*>(memory) : nullptr;
    elements =
        args.keeps_row ? reinterpret_cast<Vector*>(memory + class_bytes(args.num_keys)) : nullptr;
  }
};

// Work: a block takes one row at a time, in chunks of 256 vectors; otherwise as above. Memory: the
// classes, and the row if it fits too, are kept in shared memory; what does not fit is read again,
// mostly from L2. A thread reads back only what it wrote itself.
template <typename T>
__global__ void __launch_bounds__(kRedistributeThreads<kRedistributeWarps>, 2)
    redistribute_long_kernel(RedistributeArguments<T> args) {
  constexpr int kThreads = kRedistributeThreads<kRedistributeWarps>;
  constexpr int kElements = kVectorSize<T>;
  auto& shared = dynamic_shared<RedistributeShared>();
  const LongRow<T> kept(args, shared);
  const int num_keys = static_cast<int>(args.num_keys);
  const int num_vectors = (num_keys + kElements - 1) / kElements;
  const int thread = static_cast<int>(threadIdx.x);
  const bool in_place = args.out == args.probs;
  int turn = 0;
  int classified = -1;
  SequenceFacts facts;

  for (RowCursor row(args, blockIdx.x, gridDim.x); row.batch < args.batch; row.advance(args)) {
    float counts[kNumTokenClasses] = {};
    if (row.batch != classified) {
      classified = row.batch;
      for (int v = thread; v < num_vectors; v += kThreads) {
        const std::uint32_t word = class_word(args, row.batch, v * kElements, counts);
        if (kept.classes != nullptr) kept.classes[v] = static_cast<std::uint16_t>(word);
      }
      sum_over_row<kRedistributeWarps>(counts, shared, turn);
      facts = {counts[0], counts[1] > 0.0f};
    }
    const bool sums_needed = may_change(args, row, facts);
    if (in_place && !sums_needed) continue;

    const T* probs = args.probs + args.probs_stride.offset(row.batch, row.head, row.row);
    T* out = args.out + args.out_stride.offset(row.batch, row.head, row.row);
    const bool probs_aligned = is_vector_aligned(probs);
    const bool out_aligned = is_vector_aligned(out);
    const auto classes_of = [&](int v) {
      return kept.classes != nullptr ? kept.classes[v]
                                     : class_word(args, row.batch, v * kElements, counts);
    };
    ClassWeights weights{{1.0f, 1.0f, 1.0f, 1.0f}, false};
    if (sums_needed) {
      float mass[kNumTokenClasses] = {};
      for (int start = thread; start < num_vectors; start += kRedistributeLongUnroll * kThreads) {
        Vector elements[kRedistributeLongUnroll];
        LIBVAR_UNROLL
        for (int u = 0; u < kRedistributeLongUnroll; ++u) {
          elements[u] =
              load_vector(probs, (start + u * kThreads) * kElements, num_keys, probs_aligned);
        }
        LIBVAR_UNROLL
        for (int u = 0; u < kRedistributeLongUnroll; ++u) {
          const int v = start + u * kThreads;
          if (v >= num_vectors) continue;
          if (kept.elements != nullptr) kept.elements[v] = elements[u];
          add_vector<T>(elements[u], classes_of(v), mass);
        }
      }
      sum_over_row<kRedistributeWarps>(mass, shared, turn);
      weights = class_weights(mass, args.rule, facts.num_visual_keys, true);
    }
    if (in_place && !weights.selected) continue;

    const bool from_kept = sums_needed && kept.elements != nullptr;
    for (int v = thread; v < num_vectors; v += kThreads) {
      Vector elements =
          from_kept ? kept.elements[v] : load_vector(probs, v * kElements, num_keys, probs_aligned);
      const bool changed = weights.selected && rescale_vector<T>(elements, classes_of(v), weights);
      if (changed || !in_place) store_vector(out, v * kElements, num_keys, out_aligned, elements);
    }
  }
}

template <typename T, int kWarps, int kVectors>
cudaError_t launch_redistribute_rows(const RedistributeArguments<T>& args, std::int64_t num_rows,
                                     cudaStream_t stream) {
  constexpr int kThreads = kRedistributeThreads<kWarps>;
  constexpr int kGroups = kThreads / (kWarps * kWarpSize);
  return launch_persistent(&redistribute_kernel<T, kWarps, kVectors>,
                           (num_rows + kGroups - 1) / kGroups, kThreads, sizeof(RedistributeShared),
                           stream, args);
}

template <typename T>
cudaError_t launch_redistribute(RedistributeArguments<T> args, cudaStream_t stream) {
  const std::int64_t num_rows = args.batch * args.num_heads * args.num_rows;
  if (num_rows == 0 || args.num_keys == 0) return cudaSuccess;
  if (num_rows > INT32_MAX / 2 || args.num_keys > INT32_MAX / 2) return cudaErrorInvalidValue;
  // Enough bytes in flight in a multiprocessor at every length, in the fewest registers.
  const std::int64_t num_vectors = (args.num_keys + kVectorSize<T> - 1) / kVectorSize<T>;
  if (num_vectors <= 32 * 4) return launch_redistribute_rows<T, 1, 4>(args, num_rows, stream);
  if (num_vectors <= 32 * 8) return launch_redistribute_rows<T, 1, 8>(args, num_rows, stream);
  if (num_vectors <= 128 * 4) return launch_redistribute_rows<T, 4, 4>(args, num_rows, stream);
  if (num_vectors <= 256 * 4) return launch_redistribute_rows<T, 8, 4>(args, num_rows, stream);
  if (num_vectors <= 256 * 8) return launch_redistribute_rows<T, 8, 8>(args, num_rows, stream);
  std::size_t shared_bytes = sizeof(RedistributeShared);
  args.keeps_classes = shared_bytes + LongRow<T>::class_bytes(args.num_keys) <= kMostSharedBytes;
  if (args.keeps_classes) shared_bytes += LongRow<T>::class_bytes(args.num_keys);
  args.keeps_row =
      args.keeps_classes && shared_bytes + LongRow<T>::row_bytes(args.num_keys) <= kMostSharedBytes;
  if (args.keeps_row) shared_bytes += LongRow<T>::row_bytes(args.num_keys);
  return launch_persistent(&redistribute_long_kernel<T>, num_rows,
                           kRedistributeThreads<kRedistributeWarps>, shared_bytes, stream, args);
}

}  // namespace libvar::cuda
