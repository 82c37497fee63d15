#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/attention.h"
#include "cuda/dispatch.h"

namespace libvar::cuda {

/// What every launch of attention needs, from tensors that have been checked; masks of rows,
/// lengths, parameters, traces and the rule are left empty.
template <typename T>
AttentionArguments<T> attention_arguments(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const at::Tensor& sink_scores,
                                          const at::Tensor& visual_mask, const at::Tensor& out,
                                          double scale) {
  AttentionArguments<T> args = {};
  args.query = input<T>(query);
  args.key = input<T>(key);
  args.value = input<T>(value);
  args.sink_scores = input<float>(sink_scores);
  args.visual_mask = input<bool>(visual_mask);
  args.out = output<T>(out);
  args.query_stride = row_strides(query);
  args.key_stride = row_strides(key);
  args.value_stride = row_strides(value);
  args.sink_scores_stride = token_strides(sink_scores);
  args.visual_mask_stride = token_strides(visual_mask);
  args.batch = query.size(0);
  args.num_heads = static_cast<int>(query.size(1));
  args.num_kv_heads = static_cast<int>(key.size(1));
  args.num_rows = static_cast<int>(query.size(2));
  args.num_keys = static_cast<int>(key.size(2));
  args.head_dim = static_cast<int>(query.size(3));
  args.scale = static_cast<float>(scale);
  return args;
}

/// Memory between the kernels of a call. Calls that need more are computed in pieces.
inline constexpr std::size_t kMostScratchBytes = std::size_t{64} << 20;

/// Launches on the current stream; `classes` false leaves the class logic out.
template <typename T>
void run_attention(const AttentionArguments<T>& args, bool classes, const at::Tensor& query) {
  const AttentionKernel kernel = choose_attention_kernel(args);
  const AttentionPieces pieces = cut_attention(args, kernel, classes, kMostScratchBytes);
  // From torch's allocator: no call of the driver, and a captured graph keeps it.
  const at::Tensor scratch =
      at::empty({static_cast<std::int64_t>(pieces.bytes)}, query.options().dtype(at::kByte));
  C10_CUDA_CHECK(launch_attention(args, kernel, pieces, scratch.mutable_data_ptr(), classes,
                                  c10::cuda::getCurrentCUDAStream()));
}

}  // namespace libvar::cuda
