#include "cuda/attention_rows.cuh"

namespace libvar::cuda {

template cudaError_t launch_rows(PartialArguments<__half>, bool, cudaStream_t);
template cudaError_t launch_rows(PartialArguments<__nv_bfloat16>, bool, cudaStream_t);

}  // namespace libvar::cuda
