#include "cuda/attention_combine.cuh"

namespace libvar::cuda {

template cudaError_t launch_combine(const PartialArguments<float>&, AttentionKernel, bool,
                                    cudaStream_t);
template cudaError_t launch_combine(const PartialArguments<__half>&, AttentionKernel, bool,
                                    cudaStream_t);
template cudaError_t launch_combine(const PartialArguments<__nv_bfloat16>&, AttentionKernel, bool,
                                    cudaStream_t);

}  // namespace libvar::cuda
