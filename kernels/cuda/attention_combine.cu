#include "cuda/attention_combine.cuh"

namespace libvar::cuda {

template cudaError_t launch_combine(const PartialArguments<float>&, bool, cudaStream_t);
template cudaError_t launch_combine(const PartialArguments<__half>&, bool, cudaStream_t);
template cudaError_t launch_combine(const PartialArguments<__nv_bfloat16>&, bool, cudaStream_t);

}  // namespace libvar::cuda
