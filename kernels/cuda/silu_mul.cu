#include "cuda/silu_mul.cuh"

namespace libvar::cuda {

template cudaError_t launch_silu_mul(const SiluMulArguments<float>& args, cudaStream_t stream);
template cudaError_t launch_silu_mul(const SiluMulArguments<__half>& args, cudaStream_t stream);
template cudaError_t launch_silu_mul(const SiluMulArguments<__nv_bfloat16>& args,
                                     cudaStream_t stream);

}  // namespace libvar::cuda
