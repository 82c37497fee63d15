// libvar's CUDA attention launched without its class logic, past the op.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "cuda/attention_arguments.h"
#include "kernels/cuda_plain.h"

namespace libvar::bench {

at::Tensor cuda_attention_without_classes(const AttentionInputs& in) {
  const at::Tensor out = at::empty(in.query.sizes(), in.query.options());
  cuda::for_element_type(in.query.scalar_type(), [&](auto element) {
    using T = decltype(element);
    cuda::run_attention(cuda::attention_arguments<T>(in.query, in.key, in.value, in.sink_scores,
                                                     in.visual_mask, out, in.scale),
                        /*classes=*/false, in.query);
  });
  return out;
}

}  // namespace libvar::bench
