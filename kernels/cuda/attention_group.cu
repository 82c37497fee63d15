#include "cuda/attention_group.cuh"

namespace libvar::cuda {

template cudaError_t launch_group(PartialArguments<__half>, bool, cudaStream_t);
template cudaError_t launch_group(PartialArguments<__nv_bfloat16>, bool, cudaStream_t);

}  // namespace libvar::cuda
