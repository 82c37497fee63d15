#pragma once

// What the two tensor-core kernels share. A warp computes 16 packed rows: its lane holds scores and
// outputs of the rows g and g + 8 in the columns 2 t and 2 t + 1 of each 8 (g = lane / 4, t = lane
// % 4; mma.cuh). No torch.

#include "cuda/attention_launch.cuh"

namespace libvar::cuda {

inline constexpr int kTensorThreads = 128;
inline constexpr int kTensorWarps = kTensorThreads / kWarpSize;
inline constexpr int kFragmentKeys = 16;

/// Elements from one row of shared memory to the next. Half a vector more than a multiple of 32
/// bytes: the 8 rows of a matrix that ldmatrix reads lie on different banks, for every head size.
template <int kDims>
inline constexpr int kPitch = kDims + 8;

/// The two rows of a lane.
struct FragmentRows {
  PackedRow row[2];

  template <typename T>
  LIBVAR_DEVICE FragmentRows(const PartialArguments<T>& args, const RowTile& tile, int first) {
    const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4;
    row[0] = packed_row(args, tile, first + g);
    row[1] = packed_row(args, tile, first + g + 8);
  }
};

/// Queries as the left operand: each lane reads its own two neighbours.
template <typename T, int kDims>
LIBVAR_DEVICE void load_query(const PartialArguments<T>& args, const RowTile& tile,
                              const FragmentRows& rows, std::uint32_t (&query)[kDims / 16][4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  LIBVAR_UNROLL
  for (int i = 0; i < 2; ++i) {
    const PackedRow& row = rows.row[i];
    const T* from = args.attention.query +
                    args.attention.query_stride.offset(tile.sequence, row.head, row.row) + 2 * t;
    LIBVAR_UNROLL
    for (int step = 0; step < kDims / 16; ++step) {
      LIBVAR_UNROLL
      for (int half = 0; half < 2; ++half) {
        query[step][2 * half + i] = load_word(from + 16 * step + 8 * half);
      }
    }
  }
}

/// Copies 16-byte vectors of `num_rows` rows to shared memory; row i comes from key local(i) of
/// `from`, zeros where that is negative.
template <typename T, int kDims, typename Local>
LIBVAR_DEVICE void copy_rows(T (*to)[kPitch<kDims>], const T* from, std::int64_t stride,
                             int num_rows, const Local& local) {
  constexpr int kVectors = kDims / 8;
  const int thread = static_cast<int>(threadIdx.x);
  const auto copy = [&](int row, int d) {
    const int key = local(row);
    copy_async(&to[row][d], from + (key >= 0 ? key * stride : 0) + d, key >= 0);
  };
  if constexpr (kTensorThreads % kVectors == 0) {  // a thread stays in its dimensions
    const int d = thread % kVectors * 8;
#if defined(__CUDACC__)
#pragma unroll 4
#endif
    for (int row = thread / kVectors; row < num_rows; row += kTensorThreads / kVectors)
      copy(row, d);
  } else {
#if defined(__CUDACC__)
#pragma unroll 4
#endif
    for (int i = thread; i < num_rows * kVectors; i += kTensorThreads)
      copy(i / kVectors, i % kVectors * 8);
  }
}

/// Adds the products of the warp's rows with 16 keys, two blocks of 8, over dimensions 16 step to
/// 16 step + 15.
template <typename T, int kDims>
LIBVAR_DEVICE void score_keys(const std::uint32_t (&query)[4], const T (*keys)[kPitch<kDims>],
                              int step, float (&low)[4], float (&high)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  std::uint32_t key[4];
  load_matrices(key, &keys[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8 + 16 * step]);
  multiply_add<T>(low, query, key[0], key[1]);
  multiply_add<T>(high, query, key[2], key[3]);
}

/// The values of 16 keys in 16 dimensions from d on, as the right operand of two blocks of 8.
template <typename T, int kDims>
LIBVAR_DEVICE void load_values(const T (*values)[kPitch<kDims>], int d, std::uint32_t (&value)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  load_matrices_transposed(value, &values[lane % 16][d + lane / 16 * 8]);
}

template <typename T>
LIBVAR_DEVICE void add_values(const std::uint32_t (&weight)[4], const std::uint32_t (&value)[4],
                              float (&sum)[2][4]) {
  multiply_add<T>(sum[0], weight, value[0], value[1]);
  multiply_add<T>(sum[1], weight, value[2], value[3]);
}

/// Whether values that are infinite or NaN are among the warp's.
template <typename T>
LIBVAR_DEVICE bool any_non_finite(const std::uint32_t (&value)[4]) {
  bool found = false;
  LIBVAR_UNROLL
  for (int i = 0; i < 4; ++i) found |= has_non_finite<T>(value[i]);
  return __any_sync(kFullWarp, found) != 0;
}

/// add_values where some rows don't see some of the keys and a value is not finite: the weight of
/// such a key is 0, and 0 times NaN is NaN. Each row in turn is computed with the values that it
/// does not see set to 0, which gives it the bits that finite values would. `position` holds the
/// positions of the lane's 4 keys (the rows of its values), `limit` those of its two rows.
template <typename T>
LIBVAR_DEVICE void add_values_row_by_row(const std::uint32_t (&weight)[4],
                                         const std::uint32_t (&value)[4], const int (&position)[4],
                                         const int (&limit)[2], float (&sum)[2][4]) {
  const int g = static_cast<int>(threadIdx.x) % kWarpSize / 4;
#if defined(__CUDACC__)
#pragma unroll 1
#endif
  for (int row = 0; row < 16; ++row) {
    const int low_limit = __shfl_sync(kFullWarp, limit[0], row % 8 * 4);
    const int high_limit = __shfl_sync(kFullWarp, limit[1], row % 8 * 4);
    const int own_limit = row < 8 ? low_limit : high_limit;
    std::uint32_t seen[2];
    LIBVAR_UNROLL
    for (int i = 0; i < 2; ++i) {
      seen[i] = (position[2 * i] <= own_limit ? 0x0000ffffu : 0u) |
                (position[2 * i + 1] <= own_limit ? 0xffff0000u : 0u);
    }
    LIBVAR_UNROLL
    for (int block = 0; block < 2; ++block) {
      float result[4] = {sum[block][0], sum[block][1], sum[block][2], sum[block][3]};
      multiply_add<T>(result, weight, value[2 * block] & seen[0], value[2 * block + 1] & seen[1]);
      LIBVAR_UNROLL
      for (int i = 0; i < 4; ++i) {
        if (g + (i < 2 ? 0 : 8) == row) sum[block][i] = result[i];
      }
    }
  }
}

/// Largest of the four lanes that share a row; NaN only where all four are.
LIBVAR_DEVICE float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, 1));
  return fmaxf(x, __shfl_xor_sync(kFullWarp, x, 2));
}

LIBVAR_DEVICE float row_sum(float x) {
  x += __shfl_xor_sync(kFullWarp, x, 1);
  return x + __shfl_xor_sync(kFullWarp, x, 2);
}

struct alignas(8) Float2 {
  float x[2];
};

}  // namespace libvar::cuda
