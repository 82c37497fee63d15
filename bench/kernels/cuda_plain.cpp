// libvar's CUDA attention launched without its class logic, past the op.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/attention.h"
#include "cuda/dispatch.h"
#include "kernels/cuda_plain.h"

namespace libvar::bench {

at::Tensor cuda_attention_without_classes(const AttentionInputs& in) {
  const at::Tensor out = at::empty(in.query.sizes(), in.query.options());
  cuda::for_element_type(in.query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::AttentionArguments<T> args = {};
    args.query = cuda::input<T>(in.query);
    args.key = cuda::input<T>(in.key);
    args.value = cuda::input<T>(in.value);
    args.sink_scores = cuda::input<float>(in.sink_scores);
    args.visual_mask = cuda::input<bool>(in.visual_mask);
    args.out = cuda::output<T>(out);
    args.query_stride = cuda::row_strides(in.query);
    args.key_stride = cuda::row_strides(in.key);
    args.value_stride = cuda::row_strides(in.value);
    args.sink_scores_stride = cuda::token_strides(in.sink_scores);
    args.visual_mask_stride = cuda::token_strides(in.visual_mask);
    args.batch = in.query.size(0);
    args.num_heads = static_cast<int>(in.query.size(1));
    args.num_kv_heads = static_cast<int>(in.key.size(1));
    args.num_rows = static_cast<int>(in.query.size(2));
    args.num_keys = static_cast<int>(in.key.size(2));
    args.head_dim = static_cast<int>(in.query.size(3));
    args.scale = static_cast<float>(in.scale);
    const cuda::AttentionKernel kernel = cuda::choose_attention_kernel(args);
    const cuda::AttentionPieces pieces =
        cuda::cut_attention(args, kernel, false, std::size_t{64} << 20);
    const at::Tensor scratch =
        at::empty({static_cast<std::int64_t>(pieces.bytes)}, in.query.options().dtype(at::kByte));
    C10_CUDA_CHECK(cuda::launch_attention(args, kernel, pieces, scratch.mutable_data_ptr(), false,
                                          c10::cuda::getCurrentCUDAStream()));
  });
  return out;
}

}  // namespace libvar::bench
