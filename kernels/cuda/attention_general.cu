#include "cuda/attention_general.cuh"

namespace libvar::cuda {

template cudaError_t launch_general(const AttentionArguments<float>&, cudaStream_t);
template cudaError_t launch_general(const AttentionArguments<__half>&, cudaStream_t);
template cudaError_t launch_general(const AttentionArguments<__nv_bfloat16>&, cudaStream_t);

}  // namespace libvar::cuda
