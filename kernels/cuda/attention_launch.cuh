#pragma once

// Defines what attention.h declares: which kernel computes a call, in which pieces, and how much
// memory it needs in between. Host code; the launchers that it calls are instantiated in a .cu file
// each.

#include <algorithm>

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

namespace libvar::cuda {

template <typename T>
cudaError_t launch_general(const AttentionArguments<T>& args, cudaStream_t stream);
template <typename T>
cudaError_t launch_decode(PartialArguments<T> args, bool with_classes, cudaStream_t stream);
template <typename T>
cudaError_t launch_group(PartialArguments<T> args, bool with_classes, cudaStream_t stream);
template <typename T>
cudaError_t launch_rows(PartialArguments<T> args, bool with_classes, cudaStream_t stream);
template <typename T>
cudaError_t launch_combine(const PartialArguments<T>& args, AttentionKernel kernel,
                           bool with_classes, cudaStream_t stream);

/// A decode block's rows, and most packed rows for which the decode kernel is taken where tensor
/// cores can't be: from there on reading the keys again for every two rows costs more than the
/// general kernel.
inline constexpr int kDecodeRows = 2;
inline constexpr int kMostDecodeRows = 16;
inline constexpr int kGroupRows = 16;
inline constexpr int kRowsRows = 64;

template <typename T>
bool is_vectorized(const T* data, const RowStrides& strides) {
  constexpr std::int64_t kElements = kVectorSize<T>;
  return reinterpret_cast<std::uintptr_t>(data) % sizeof(Vector) == 0 &&
         strides.batch % kElements == 0 && strides.head % kElements == 0 &&
         strides.row % kElements == 0;
}

template <typename T>
AttentionKernel choose_attention_kernel(const AttentionArguments<T>& args) {
  const bool vectorized =
      args.head_dim % kVectorSize<T> == 0 && is_vectorized(args.query, args.query_stride) &&
      is_vectorized(args.key, args.key_stride) && is_vectorized(args.value, args.value_stride);
  if (!vectorized || args.head_dim == 0 || args.num_heads == 0) return AttentionKernel::kGeneral;
  const std::int64_t packed = std::int64_t{args.num_rows} * (args.num_heads / args.num_kv_heads);
  if (packed <= kDecodeRows) return AttentionKernel::kDecode;
  const int d = args.head_dim;
  if (sizeof(T) == 2 && (d == 64 || d == 80 || d == 96 || d == 128))
    return packed <= kGroupRows ? AttentionKernel::kGroup : AttentionKernel::kRows;
  return packed <= kMostDecodeRows ? AttentionKernel::kDecode : AttentionKernel::kGeneral;
}

/// Row tiles of a sequence that keep the GPU busy without being cut into ranges.
inline constexpr std::int64_t kManyTiles = 160;

/// Ranges of a call: long enough that combining costs little, short enough that a short context
/// fills the GPU. Many rows fill it anyway, and their partial states would be most of what is
/// moved.
template <typename T>
KeyRanges key_ranges(AttentionKernel kernel, const AttentionArguments<T>& args) {
  const int head_dim = args.head_dim;
  if (kernel == AttentionKernel::kGroup) return {0, 0, 7};
  if (kernel == AttentionKernel::kRows) {
    const std::int64_t packed = std::int64_t{args.num_rows} * (args.num_heads / args.num_kv_heads);
    const std::int64_t tiles = (packed + kRowsRows - 1) / kRowsRows * args.num_kv_heads;
    return tiles >= kManyTiles ? KeyRanges{0, 0, 11} : KeyRanges{7, 8, 8};
  }
  // 16 lanes of 16 bytes hold a key, or fewer lanes twice as many keys.
  return {0, 0, head_dim * static_cast<int>(sizeof(T)) <= 128 ? 7 : 6};
}

inline std::int64_t align_to_vector(std::int64_t bytes) {
  return (bytes + 15) / 16 * 16;
}

template <typename T>
AttentionPieces cut_attention(const AttentionArguments<T>& args, AttentionKernel kernel,
                              bool with_classes, std::size_t most_bytes) {
  AttentionPieces pieces;
  if (kernel == AttentionKernel::kGeneral) return pieces;
  const int group = args.num_heads / args.num_kv_heads;
  pieces.num_ranges = std::max(key_ranges(kernel, args).count(args.num_keys), 1);
  const std::int64_t states_of_row =
      std::int64_t{pieces.num_ranges} * (with_classes ? kNumTokenClasses : 1) * args.num_heads;
  const auto bytes_of_state =
      static_cast<std::int64_t>(sizeof(PartialState) + sizeof(float) * args.head_dim);
  const std::int64_t bytes_of_row = states_of_row * bytes_of_state;
  const std::int64_t most_rows =
      std::max<std::int64_t>(static_cast<std::int64_t>(most_bytes) / bytes_of_row, 1);
  // Whole row tiles, so that no piece reads the keys for a tile that is nearly empty.
  const int tile = std::max(kRowsRows / group, 1);
  const auto whole = std::max<std::int64_t>(most_rows / tile * tile, tile);
  pieces.num_rows = static_cast<int>(std::min<std::int64_t>(args.num_rows, whole));
  pieces.num_sequences =
      pieces.num_rows < args.num_rows
          ? 1
          : static_cast<int>(std::clamp<std::int64_t>(most_rows / std::max(pieces.num_rows, 1), 1,
                                                      std::max<std::int64_t>(args.batch, 1)));
  pieces.num_states = states_of_row * pieces.num_rows * pieces.num_sequences;
  pieces.bytes = static_cast<std::size_t>(
      align_to_vector(pieces.num_states * static_cast<std::int64_t>(sizeof(float)) *
                      args.head_dim) +
      align_to_vector(pieces.num_states * static_cast<std::int64_t>(sizeof(PartialState))) +
      align_to_vector(std::int64_t{pieces.num_sequences} * pieces.num_ranges *
                      static_cast<std::int64_t>(sizeof(RangeFacts))));
  return pieces;
}

template <typename T>
cudaError_t launch_piece(PartialArguments<T>& args, AttentionKernel kernel,
                         std::int64_t most_blocks, bool with_classes, cudaStream_t stream) {
  const int rows_in_tile = kernel == AttentionKernel::kDecode  ? kDecodeRows
                           : kernel == AttentionKernel::kGroup ? kGroupRows
                                                               : kRowsRows;
  const std::int64_t num_tiles =
      num_row_tiles(args, rows_in_tile) * args.attention.num_kv_heads * args.num_sequences;
  args.num_slots =
      static_cast<int>(std::clamp<std::int64_t>(most_blocks / num_tiles, 1, args.num_ranges));
  cudaError_t error = cudaErrorInvalidValue;
  if (kernel == AttentionKernel::kDecode) error = launch_decode(args, with_classes, stream);
  if constexpr (sizeof(T) == 2) {
    if (kernel == AttentionKernel::kGroup) error = launch_group(args, with_classes, stream);
    if (kernel == AttentionKernel::kRows) error = launch_rows(args, with_classes, stream);
  }
  return error == cudaSuccess ? launch_combine(args, kernel, with_classes, stream) : error;
}

template <typename T>
cudaError_t launch_attention(const AttentionArguments<T>& attention, AttentionKernel kernel,
                             const AttentionPieces& pieces, void* scratch, bool with_classes,
                             cudaStream_t stream) {
  if (attention.head_dim > kMaxHeadDim) return cudaErrorInvalidValue;
  if (kernel == AttentionKernel::kGeneral)
    return with_classes ? launch_general(attention, stream) : cudaErrorInvalidValue;
  PartialArguments<T> args = {};
  args.attention = attention;
  args.ranges = key_ranges(kernel, attention);
  args.group = Divider(attention.num_heads / attention.num_kv_heads);
  args.kv_heads = Divider(attention.num_kv_heads);
  args.num_ranges = pieces.num_ranges;
  auto* bytes = static_cast<unsigned char*>(scratch);
  args.out = reinterpret_cast<float*>(bytes);
  bytes += align_to_vector(pieces.num_states * static_cast<std::int64_t>(sizeof(float)) *
                           attention.head_dim);
  args.states = reinterpret_cast<PartialState*>(bytes);
  bytes += align_to_vector(pieces.num_states * static_cast<std::int64_t>(sizeof(PartialState)));
  args.facts = reinterpret_cast<RangeFacts*>(bytes);
  const auto num_sequences = static_cast<int>(attention.batch);
  for (int b = 0; b < num_sequences; b += pieces.num_sequences) {
    for (int row = 0; row < attention.num_rows; row += pieces.num_rows) {
      args.first_sequence = b;
      args.num_sequences = std::min(pieces.num_sequences, num_sequences - b);
      args.first_row = row;
      args.num_rows = std::min(pieces.num_rows, attention.num_rows - row);
      const cudaError_t error =
          launch_piece(args, kernel, pieces.most_blocks, with_classes, stream);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace libvar::cuda
