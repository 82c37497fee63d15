#include "cuda/attention_launch.cuh"

#define LIBVAR_INSTANTIATE_ATTENTION(T)                                                       \
  template AttentionKernel choose_attention_kernel(const AttentionArguments<T>&);             \
  template AttentionPieces cut_attention(const AttentionArguments<T>&, AttentionKernel, bool, \
                                         std::size_t);                                        \
  template cudaError_t launch_attention(const AttentionArguments<T>&, AttentionKernel,        \
                                        const AttentionPieces&, void*, bool, cudaStream_t);

namespace libvar::cuda {

LIBVAR_INSTANTIATE_ATTENTION(float)
LIBVAR_INSTANTIATE_ATTENTION(__half)
LIBVAR_INSTANTIATE_ATTENTION(__nv_bfloat16)

}  // namespace libvar::cuda
