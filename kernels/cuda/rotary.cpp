#include "cuda/rotary.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "checks.h"
#include "cuda/dispatch.h"

namespace libvar {
namespace {

cuda::TokenStrides angle_strides(const at::Tensor& angles) {
  return {angles.size(0) > 1 ? angles.stride(0) : 0, angles.stride(1)};
}

at::Tensor rotate_and_cache_cuda(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const at::Tensor& sink_scores,
                                 const at::Tensor& cos, const at::Tensor& sin,
                                 const at::Tensor& places, at::Tensor& key_cache,
                                 at::Tensor& value_cache, at::Tensor& sink_score_cache) {
  checks::check_rotate_and_cache(
      {query, key, value, sink_scores, cos, sin, places, key_cache, value_cache, sink_score_cache});
  const c10::cuda::CUDAGuard guard(query.device());
  at::Tensor rotated = at::empty(query.sizes(), query.options());
  const at::Tensor first_places = places.contiguous();
  cuda::for_element_type(query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::RotaryArguments<T> args = {};
    args.query = cuda::input<T>(query);
    args.key = cuda::input<T>(key);
    args.value = cuda::input<T>(value);
    args.sink_scores = cuda::input<float>(sink_scores);
    args.cos = cuda::input<T>(cos);
    args.sin = cuda::input<T>(sin);
    args.places = cuda::input<std::int64_t>(first_places);
    args.rotated = cuda::output<T>(rotated);
    args.key_cache = cuda::output<T>(key_cache);
    args.value_cache = cuda::output<T>(value_cache);
    args.sink_score_cache = cuda::output<float>(sink_score_cache);
    args.query_stride = cuda::row_strides(query);
    args.key_stride = cuda::row_strides(key);
    args.value_stride = cuda::row_strides(value);
    args.key_cache_stride = cuda::row_strides(key_cache);
    args.value_cache_stride = cuda::row_strides(value_cache);
    args.sink_scores_stride = cuda::token_strides(sink_scores);
    args.sink_score_cache_stride = cuda::token_strides(sink_score_cache);
    args.cos_stride = angle_strides(cos);
    args.sin_stride = angle_strides(sin);
    args.batch = query.size(0);
    args.num_rows = query.size(2);
    args.capacity = key_cache.size(2);
    args.num_heads = static_cast<int>(query.size(1));
    args.num_kv_heads = static_cast<int>(key.size(1));
    args.half = static_cast<int>(query.size(3) / 2);
    C10_CUDA_CHECK(cuda::launch_rotary(args, c10::cuda::getCurrentCUDAStream()));
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return rotated;
}

}  // namespace
}  // namespace libvar

TORCH_LIBRARY_IMPL(libvar, CUDA, m) {
  m.impl("rotate_and_cache", &libvar::rotate_and_cache_cuda);
}
