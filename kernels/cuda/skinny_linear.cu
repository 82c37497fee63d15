#include "cuda/skinny_linear.cuh"

namespace libvar::cuda {

template cudaError_t launch_skinny_linear(const SkinnyArguments<float, float>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_linear(const SkinnyArguments<__half, __half>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_linear(const SkinnyArguments<__nv_bfloat16, __nv_bfloat16>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_linear(const SkinnyArguments<std::int8_t, float>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_linear(const SkinnyArguments<std::int8_t, __half>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_linear(const SkinnyArguments<std::int8_t, __nv_bfloat16>& args,
                                          cudaStream_t stream);

}  // namespace libvar::cuda
