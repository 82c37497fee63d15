#include "cuda/greedy_tokens.cuh"

namespace libvar::cuda {

template cudaError_t launch_greedy_tokens(const GreedyArguments<float>& args, cudaStream_t stream);
template cudaError_t launch_greedy_tokens(const GreedyArguments<__half>& args, cudaStream_t stream);
template cudaError_t launch_greedy_tokens(const GreedyArguments<__nv_bfloat16>& args,
                                          cudaStream_t stream);

}  // namespace libvar::cuda
