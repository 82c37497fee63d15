#pragma once

// Linear maps of a few rows and the gated pair of an MLP (ops.h: skinny_linear, skinny_swiglu). No
// torch.

#include "cuda/skinny_linear.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kSkinnyWarps = 4;  // of a block; they share its weight rows
inline constexpr int kSkinnyThreads = kSkinnyWarps * kWarpSize;

/// What a block does. kInputs: rows of input, those past the last are the last again.
template <typename W, typename T, int kInputs, bool kIsGated>
struct SkinnyShape {
  static constexpr bool kIsInt8 = sizeof(W) == 1;
  static constexpr int kMatrices = kIsGated ? 2 : 1;
  /// Weight rows: several share what the input costs.
  static constexpr int kRows = kInputs == 8 ? 4 : 2;
  static constexpr int kOutputs = kRows / kMatrices;  ///< of each row of input
  /// Vectors of a weight row that a thread has in flight.
  static constexpr int kLoads = (kIsInt8 ? 4 : 8) / kRows;
  static constexpr int kSums = kInputs * kRows;
  static constexpr int kElements = kVectorSize<W>;
  static constexpr int kInPart = kVectorSize<T>;      ///< elements of a vector of input
  static constexpr int kParts = kElements / kInPart;  ///< vectors of input beside one of weight
  /// Blocks that a multiprocessor shall hold: as many as leave the registers that are needed.
  static constexpr int kBlocks = kInputs == 1 ? 7 : kInputs == 2 ? 5 : kInputs == 4 ? 4 : 3;
};

/// Part of a vector as floats: the elements that meet one vector of input.
template <typename W, typename T>
LIBVAR_DEVICE void unpack_part(const Vector& vector, int part, float (&values)[kVectorSize<T>]) {
  if constexpr (std::is_same_v<W, T>) {
    unpack<T>(vector, values);
  } else {
    static_assert(std::is_same_v<W, std::int8_t>);
    LIBVAR_UNROLL
    for (int e = 0; e < kVectorSize<T>; ++e) {
      const int place = part * kVectorSize<T> + e;
      // x + 128 as the last byte of the float 2^23: conversions have few units of their own.
      const std::uint32_t word = vector.word[place / 4] ^ 0x80808080u;
      const std::uint32_t bits = __byte_perm(word, 0x4b000000u, 0x7440u + place % 4);
      values[e] = __uint_as_float(bits) - (8388608.0f + 128.0f);
    }
  }
}

/// Adds the products of one vector of each weight row, those of a part to each other first. All
/// kernels do so in this order: an output's bits do not depend on the other rows.
/// @param load_input  (m, part) -> vector of input row m
template <typename W, typename T, int kInputs, int kRows, typename LoadInput>
LIBVAR_DEVICE void add_products(const Vector (&weight)[kRows], const LoadInput& load_input,
                                float (&sum)[kInputs * kRows]) {
  constexpr int kInPart = kVectorSize<T>;
  LIBVAR_UNROLL
  for (int part = 0; part < kVectorSize<W> / kInPart; ++part) {
    float w[kRows][kInPart];
    LIBVAR_UNROLL
    for (int r = 0; r < kRows; ++r) unpack_part<W, T>(weight[r], part, w[r]);
    LIBVAR_UNROLL
    for (int m = 0; m < kInputs; ++m) {
      float x[kInPart];
      unpack<T>(load_input(m, part), x);
      LIBVAR_UNROLL
      for (int r = 0; r < kRows; ++r) {
        float products = w[r][0] * x[0];
        LIBVAR_UNROLL
        for (int e = 1; e < kInPart; ++e) products = fmaf(w[r][e], x[e], products);
        sum[m * kRows + r] += products;
      }
    }
    // Holds back the loads of input behind it, which would otherwise all be in flight at once.
    if constexpr (kInputs >= 4 || sizeof(W) == 1) __syncwarp();
  }
}

/// The same, element by element, for the elements of vector v that lie inside the row.
template <typename W, typename T, int kInputs, int kRows, typename WeightRow, typename InputRow>
LIBVAR_DEVICE void add_products_slowly(const WeightRow& weight_row, const InputRow& input_row,
                                       int v, int size, float (&sum)[kInputs * kRows]) {
  constexpr int kInPart = kVectorSize<T>;
  const int end = v < size / kVectorSize<W> ? (v + 1) * kVectorSize<W> : size;
  for (int part = v * kVectorSize<W>; part < end; part += kInPart) {
    float products[kInputs * kRows] = {};
    LIBVAR_NO_UNROLL
    for (int k = part; k < end && k < part + kInPart; ++k) {
      float w[kRows];
      LIBVAR_UNROLL
      for (int r = 0; r < kRows; ++r) w[r] = to_float(weight_row(r)[k]);
      LIBVAR_UNROLL
      for (int m = 0; m < kInputs; ++m) {
        const float x = to_float(input_row(m)[k]);
        LIBVAR_UNROLL
        for (int r = 0; r < kRows; ++r)
          products[m * kRows + r] = fmaf(w[r], x, products[m * kRows + r]);
      }
    }
    LIBVAR_UNROLL
    for (int i = 0; i < kInputs * kRows; ++i) sum[i] += products[i];
  }
}

/// Sums over the lanes that differ in offset or lower bits, of kSums values: a lane gets one of
/// them. Each exchange halves the values that it still adds up.
template <int kSums, int kOffset = kWarpSize / 2, int kSize>
LIBVAR_DEVICE float sums_over_lanes(const float (&x)[kSize]) {
  if constexpr (kOffset == 0) {
    return x[0];
  } else if constexpr (kSums == 1) {
    const float sum[1] = {x[0] + __shfl_xor_sync(kFullWarp, x[0], kOffset)};
    return sums_over_lanes<1, kOffset / 2>(sum);
  } else {
    constexpr int kHalf = kSums / 2;
    const bool upper = (threadIdx.x & kOffset) != 0;
    float sum[kHalf];
    LIBVAR_UNROLL
    for (int i = 0; i < kHalf; ++i) {
      const float other = __shfl_xor_sync(kFullWarp, upper ? x[i] : x[i + kHalf], kOffset);
      sum[i] = (upper ? x[i + kHalf] : x[i]) + other;
    }
    return sums_over_lanes<kHalf, kOffset / 2>(sum);
  }
}

/// Sums over the warp of kSums values: lane l gets that of value l / (32 / kSums), with the bits of
/// warp_sum.
template <int kSums>
LIBVAR_DEVICE float sums_over_warp(const float (&x)[kSums]) {
  return sums_over_lanes<kSums>(x);
}

/// Output of a sum: scale, bias, rounding to the dtype.
template <typename W, typename T>
LIBVAR_DEVICE T finished(const SkinnyMatrix<W, T>& matrix, std::int64_t n, float sum) {
  if (matrix.scale != nullptr) sum *= matrix.scale[n];
  if (matrix.bias != nullptr) sum += to_float(matrix.bias[n]);
  return from_float<T>(sum);
}

template <int kSums>
struct alignas(16) SkinnyShared {
  float sums[kSums][kSkinnyWarps];
};

/// Writes the outputs of the block's weight rows, from n on: the warps leave their sums, and one of
/// them adds them up.
template <typename W, typename T, int kInputs, bool kIsGated>
LIBVAR_DEVICE void write_outputs(
    const SkinnyArguments<W, T>& args, std::int64_t n,
    const float (&sum)[SkinnyShape<W, T, kInputs, kIsGated>::kSums],
    SkinnyShared<SkinnyShape<W, T, kInputs, kIsGated>::kSums>& shared) {
  using Shape = SkinnyShape<W, T, kInputs, kIsGated>;
  constexpr int kLanes = kWarpSize / Shape::kSums;  // that have the same sum
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  float own = sums_over_warp(sum);
  if (lane % kLanes == 0) shared.sums[lane / kLanes][warp] = own;
  __syncthreads();
  if (warp != 0) return;
  own = 0.0f;
  LIBVAR_UNROLL
  for (int w = 0; w < kSkinnyWarps; ++w) own += shared.sums[lane / kLanes][w];
  const int m = lane / kLanes / Shape::kRows;
  const int r = lane / kLanes % Shape::kRows;
  n += r % Shape::kOutputs;
  if (n >= args.out_features) n = args.out_features - 1;  // the last again, as its weight row is
  const bool is_there = lane % kLanes == 0 && m < args.num_rows;
  T* output = args.output + m * args.out_features + n;
  const T value =
      r < Shape::kOutputs ? finished(args.first, n, own) : finished(args.second, n, own);
  if constexpr (kIsGated) {
    // As separate operators round: both maps, silu, the product.
    const float gate = to_float(from_float<T>(silu(to_float(value))));
    const float up =
        __shfl_sync(kFullWarp, to_float(value), (lane + Shape::kOutputs * kLanes) % kWarpSize);
    if (is_there && r < Shape::kOutputs) *output = from_float<T>(gate * up);
  } else {
    if (is_there) *output = value;
  }
}

/// Row r of those that a block computes from n on; past the last it is the last again.
template <typename W, typename T, int kInputs, bool kIsGated>
LIBVAR_DEVICE const W* weight_row(const SkinnyArguments<W, T>& args, std::int64_t n, int r) {
  constexpr int kOutputs = SkinnyShape<W, T, kInputs, kIsGated>::kOutputs;
  const SkinnyMatrix<W, T>& matrix = r < kOutputs ? args.first : args.second;
  const std::int64_t last = args.out_features - 1;
  const std::int64_t row = n + r % kOutputs;
  return matrix.weight + (row < last ? row : last) * matrix.stride;
}

/// Row m of the input; past the last it is the last again.
template <typename W, typename T>
LIBVAR_DEVICE const T* input_row(const SkinnyArguments<W, T>& args, int m) {
  const int last = static_cast<int>(args.num_rows) - 1;
  return args.input + (m < last ? m : last) * static_cast<int>(args.in_features);
}

/// The vectors of its weight rows that a thread has in flight: `first` and each 128th from there
/// on, as far as they lie in the `num_whole` of a row. In all steps of a row but its last one they
/// all do, and none is asked.
template <typename W, typename T, int kInputs, bool kIsGated>
struct SkinnyStep {
  using Shape = SkinnyShape<W, T, kInputs, kIsGated>;
  static constexpr int kVectors =
      Shape::kLoads * kSkinnyThreads;  ///< of a row, all threads together
  static constexpr int kStride = kSkinnyThreads * Shape::kElements;
  Vector vectors[Shape::kLoads][Shape::kRows];

  static LIBVAR_DEVICE bool is_whole(int first, int num_whole) {
    return first - static_cast<int>(threadIdx.x) + kVectors <= num_whole;
  }

  LIBVAR_DEVICE void load(const SkinnyArguments<W, T>& args, std::int64_t n, int first,
                          int num_whole) {
    if (is_whole(first, num_whole)) {
      load_some<true>(args, n, first, num_whole);
    } else {
      load_some<false>(args, n, first, num_whole);
    }
  }

  LIBVAR_DEVICE void add(const SkinnyArguments<W, T>& args, int first, int num_whole,
                         float (&sum)[Shape::kSums]) const {
    if (is_whole(first, num_whole)) {
      add_some<true>(args, first, num_whole, sum);
    } else {
      add_some<false>(args, first, num_whole, sum);
    }
  }

 private:
  template <bool kAll>
  LIBVAR_DEVICE void load_some(const SkinnyArguments<W, T>& args, std::int64_t n, int first,
                               int num_whole) {
    LIBVAR_UNROLL
    for (int r = 0; r < Shape::kRows; ++r) {
      const W* row = weight_row<W, T, kInputs, kIsGated>(args, n, r) + first * Shape::kElements;
      LIBVAR_UNROLL
      for (int u = 0; u < Shape::kLoads; ++u)
        vectors[u][r] = load_once(row, u * kStride, kAll || first + u * kSkinnyThreads < num_whole);
    }
  }

  template <bool kAll>
  LIBVAR_DEVICE void add_some(const SkinnyArguments<W, T>& args, int first, int num_whole,
                              float (&sum)[Shape::kSums]) const {
    LIBVAR_UNROLL
    for (int u = 0; u < Shape::kLoads; ++u) {
      const auto load_input = [&](int m, int part) {
        return load_if<Use::kAgain>(input_row(args, m) + first * Shape::kElements,
                                    u * kStride + part * Shape::kInPart,
                                    kAll || first + u * kSkinnyThreads < num_whole);
      };
      add_products<W, T, kInputs>(vectors[u], load_input, sum);
    }
  }
};

// Work: a block computes two or four weight rows, of which with a gate half are the gate's, times
// all rows of input. Thread t owns the vectors t, t + 128, ... of a row. Memory: each weight is
// read once, past L1; the input comes from L1 again and again. Eight vectors of 16 bytes are in
// flight in a thread, four of int8; blocks that wait for theirs and blocks that add up stand side
// by side. The first ones are asked for before the stream's previous kernel has ended: only input,
// bias and output are its business.
template <typename W, typename T, int kInputs, bool kIsGated>
__global__ void __launch_bounds__(kSkinnyThreads, SkinnyShape<W, T, kInputs, kIsGated>::kBlocks)
    skinny_kernel(SkinnyArguments<W, T> args) {
  using Shape = SkinnyShape<W, T, kInputs, kIsGated>;
  using Step = SkinnyStep<W, T, kInputs, kIsGated>;
  auto& shared = dynamic_shared<SkinnyShared<Shape::kSums>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int size = static_cast<int>(args.in_features);
  const int num_vectors = (size + Shape::kElements - 1) / Shape::kElements;
  const int num_whole = args.has_vectors ? size / Shape::kElements : 0;
  const std::int64_t n = std::int64_t{blockIdx.x} * Shape::kOutputs;
  let_next_kernel_start();
  Step step;
  step.load(args, n, thread, num_whole);
  wait_for_previous_kernel();
  float sum[Shape::kSums] = {};
  for (int first = thread;;) {
    step.add(args, first, num_whole, sum);
    first += Step::kVectors;
    if (first - thread >= num_whole) break;
    step.load(args, n, first, num_whole);
  }
  // The end of a row that is no whole vector, and rows that do not lie at multiples of 16 bytes.
  const int first_left =
      num_whole + (thread + kSkinnyThreads - num_whole % kSkinnyThreads) % kSkinnyThreads;
  LIBVAR_NO_UNROLL
  for (int v = first_left; v < num_vectors; v += kSkinnyThreads) {
    add_products_slowly<W, T, kInputs, Shape::kRows>(
        [&](int r) { return weight_row<W, T, kInputs, kIsGated>(args, n, r); },
        [&](int m) { return input_row(args, m); }, v, size, sum);
  }
  write_outputs<W, T, kInputs, kIsGated>(args, n, sum, shared);
}

template <typename W, typename T, int kInputs, bool kIsGated>
cudaError_t launch_skinny_rows(const SkinnyArguments<W, T>& args, cudaStream_t stream) {
  using Shape = SkinnyShape<W, T, kInputs, kIsGated>;
  return launch(&skinny_kernel<W, T, kInputs, kIsGated>,
                (args.out_features + Shape::kOutputs - 1) / Shape::kOutputs, kSkinnyThreads,
                sizeof(SkinnyShared<Shape::kSums>), stream, args,
                args.starts_early ? Start::kBesidePrevious : Start::kAfterPrevious);
}

template <bool kIsGated, typename W, typename T>
cudaError_t launch_skinny(SkinnyArguments<W, T> args, cudaStream_t stream) {
  if (args.num_rows == 0 || args.out_features == 0) return cudaSuccess;
  if (args.num_rows > kMostSkinnyRows || args.in_features > INT32_MAX / kMostSkinnyRows)
    return cudaErrorInvalidValue;
  const auto has_vectors = [](const auto* rows, std::int64_t stride, std::int64_t num_rows) {
    const auto step = static_cast<std::uint64_t>(num_rows == 1 ? 0 : stride) * sizeof(*rows);
    return (reinterpret_cast<std::uintptr_t>(rows) | step) % sizeof(Vector) == 0;
  };
  args.has_vectors =
      has_vectors(args.input, args.in_features, args.num_rows) &&
      has_vectors(args.first.weight, args.first.stride, args.out_features) &&
      (!kIsGated || has_vectors(args.second.weight, args.second.stride, args.out_features));
  if (args.num_rows == 1) return launch_skinny_rows<W, T, 1, kIsGated>(args, stream);
  if (args.num_rows == 2) return launch_skinny_rows<W, T, 2, kIsGated>(args, stream);
  if (args.num_rows <= 4) return launch_skinny_rows<W, T, 4, kIsGated>(args, stream);
  return launch_skinny_rows<W, T, 8, kIsGated>(args, stream);
}

template <typename W, typename T>
cudaError_t launch_skinny_linear(const SkinnyArguments<W, T>& args, cudaStream_t stream) {
  return launch_skinny<false>(args, stream);
}

template <typename W, typename T>
cudaError_t launch_skinny_swiglu(const SkinnyArguments<W, T>& args, cudaStream_t stream) {
  return launch_skinny<true>(args, stream);
}

}  // namespace libvar::cuda
