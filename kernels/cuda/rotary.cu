#include "cuda/rotary.cuh"

namespace libvar::cuda {

template cudaError_t launch_rotary(const RotaryArguments<float>& args, cudaStream_t stream);
template cudaError_t launch_rotary(const RotaryArguments<__half>& args, cudaStream_t stream);
template cudaError_t launch_rotary(const RotaryArguments<__nv_bfloat16>& args, cudaStream_t stream);

}  // namespace libvar::cuda
