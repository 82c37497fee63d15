#include "cuda/attention_decode.cuh"

namespace libvar::cuda {

template cudaError_t launch_decode(PartialArguments<float>, bool, cudaStream_t);
template cudaError_t launch_decode(PartialArguments<__half>, bool, cudaStream_t);
template cudaError_t launch_decode(PartialArguments<__nv_bfloat16>, bool, cudaStream_t);

}  // namespace libvar::cuda
