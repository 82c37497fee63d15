#include "cuda/skinny_linear.cuh"

namespace libvar::cuda {

template cudaError_t launch_skinny_swiglu(const SkinnyArguments<float, float>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_swiglu(const SkinnyArguments<__half, __half>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_swiglu(const SkinnyArguments<__nv_bfloat16, __nv_bfloat16>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_swiglu(const SkinnyArguments<std::int8_t, float>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_swiglu(const SkinnyArguments<std::int8_t, __half>& args,
                                          cudaStream_t stream);
template cudaError_t launch_skinny_swiglu(const SkinnyArguments<std::int8_t, __nv_bfloat16>& args,
                                          cudaStream_t stream);

}  // namespace libvar::cuda
