#include "cuda/redistribute.cuh"

namespace libvar::cuda {

template cudaError_t launch_redistribute(RedistributeArguments<float> args, cudaStream_t stream);
template cudaError_t launch_redistribute(RedistributeArguments<__half> args, cudaStream_t stream);
template cudaError_t launch_redistribute(RedistributeArguments<__nv_bfloat16> args,
                                         cudaStream_t stream);

}  // namespace libvar::cuda
