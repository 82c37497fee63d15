#include "cuda/norms.cuh"

namespace libvar::cuda {

template cudaError_t launch_norm(NormArguments<float> args, cudaStream_t stream);
template cudaError_t launch_norm(NormArguments<__half> args, cudaStream_t stream);
template cudaError_t launch_norm(NormArguments<__nv_bfloat16> args, cudaStream_t stream);

}  // namespace libvar::cuda
