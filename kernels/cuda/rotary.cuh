#pragma once

// Rotary position embedding of queries and keys, with keys, values and sink scores written where
// they are kept (ops.h: rotate_and_cache). No torch.

#include "cuda/rotary.h"
#include "cuda/vectors.cuh"

namespace libvar::cuda {

inline constexpr int kRotaryThreads = 128;

/// x * cos + y * sin with transformers' rounding: each product is rounded to the dtype, nothing is
/// fused.
template <typename T>
LIBVAR_DEVICE Vector turned(const float (&x)[kVectorSize<T>], const Vector& cos,
                            const float (&y)[kVectorSize<T>], const Vector& sin) {
  float c[kVectorSize<T>];
  float s[kVectorSize<T>];
  unpack<T>(cos, c);
  unpack<T>(sin, s);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) {
    c[e] = __fmul_rn(x[e], c[e]);
    s[e] = __fmul_rn(y[e], s[e]);
  }
  unpack<T>(pack<T>(c), c);
  unpack<T>(pack<T>(s), s);
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) c[e] = __fadd_rn(c[e], s[e]);
  return pack<T>(c);
}

/// Elements [first, first + a vector) of both halves of a head.
template <typename T>
LIBVAR_DEVICE void rotate_vectors(const T* head, const T* cos, const T* sin, T* out, int first,
                                  int half) {
  const auto take = [&](const T* row) {
    return load_vector(row, first, half, is_vector_aligned(row));
  };
  float x[kVectorSize<T>];
  float y[kVectorSize<T>];
  unpack<T>(take(head), x);
  unpack<T>(take(head + half), y);
  const Vector high = turned<T>(y, take(cos + half), x, take(sin + half));
  LIBVAR_UNROLL
  for (int e = 0; e < kVectorSize<T>; ++e) y[e] = -y[e];
  store_vector(out, first, half, is_vector_aligned(out), turned<T>(x, take(cos), y, take(sin)));
  store_vector(out + half, first, half, is_vector_aligned(out + half), high);
}

/// As rotate_vectors, but nothing turns.
template <typename T>
LIBVAR_DEVICE void copy_vectors(const T* head, T* out, int first, int half) {
  LIBVAR_UNROLL
  for (int offset = 0; offset < 2; ++offset) {
    const T* from = head + offset * half;
    T* to = out + offset * half;
    store_vector(to, first, half, is_vector_aligned(to),
                 load_vector(from, first, half, is_vector_aligned(from)));
  }
}

// Work: a thread computes one vector of each half of one head of one token; the heads of a token
// are its queries, keys and values. Memory: everything is read once and written once, in vectors
// where the addresses allow it. A token whose place lies outside the cache is not stored.
template <typename T>
__global__ void __launch_bounds__(kRotaryThreads) rotary_kernel(RotaryArguments<T> args) {
  follow_previous_kernel();
  const int vectors = (args.half + kVectorSize<T> - 1) / kVectorSize<T>;
  const int heads = args.num_heads + 2 * args.num_kv_heads;
  std::int64_t index =
      static_cast<std::int64_t>(blockIdx.x) * kRotaryThreads + static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(index % vectors) * kVectorSize<T>;
  index /= vectors;
  const int head = static_cast<int>(index % heads);
  index /= heads;
  const std::int64_t i = index % args.num_rows, b = index / args.num_rows;
  if (b >= args.batch) return;
  const T* cos = args.cos + args.cos_stride.offset(b, i);
  const T* sin = args.sin + args.sin_stride.offset(b, i);
  if (head < args.num_heads) {
    const std::int64_t row = (b * args.num_heads + head) * args.num_rows + i;
    rotate_vectors(args.query + args.query_stride.offset(b, head, i), cos, sin,
                   args.rotated + row * 2 * args.half, first, args.half);
    return;
  }
  const std::int64_t place = args.places[b] + i;
  if (place < 0 || place >= args.capacity) return;
  const int kv_head = (head - args.num_heads) % args.num_kv_heads;
  if (head < args.num_heads + args.num_kv_heads) {
    rotate_vectors(args.key + args.key_stride.offset(b, kv_head, i), cos, sin,
                   args.key_cache + args.key_cache_stride.offset(b, kv_head, place), first,
                   args.half);
    return;
  }
  copy_vectors(args.value + args.value_stride.offset(b, kv_head, i),
               args.value_cache + args.value_cache_stride.offset(b, kv_head, place), first,
               args.half);
  if (kv_head == 0 && first == 0) {
    args.sink_score_cache[args.sink_score_cache_stride.offset(b, place)] =
        args.sink_scores[args.sink_scores_stride.offset(b, i)];
  }
}

template <typename T>
cudaError_t launch_rotary(const RotaryArguments<T>& args, cudaStream_t stream) {
  const std::int64_t vectors = (args.half + kVectorSize<T> - 1) / kVectorSize<T>;
  const std::int64_t threads =
      args.batch * args.num_rows * (args.num_heads + 2 * args.num_kv_heads) * vectors;
  return launch(&rotary_kernel<T>, (threads + kRotaryThreads - 1) / kRotaryThreads, kRotaryThreads,
                0, stream, args, Start::kBesidePrevious);
}

}  // namespace libvar::cuda
