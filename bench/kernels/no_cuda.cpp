// The CUDA side of harness.h where libvar is built without it.

#include "kernels/cuda_plain.h"
#include "kernels/harness.h"
#include "kernels/machine.h"

namespace libvar::bench {

std::unique_ptr<Timer> make_cuda_timer(const Workload&) {
  return nullptr;
}

double peak_bytes_of_call(const Variant&) {
  return 0.0;
}

std::size_t cache_bytes(const at::Device&) {
  return last_level_cache_bytes();
}

void synchronize(const at::Device&) {}

at::Tensor cuda_attention_without_classes(const AttentionInputs&) {
  TORCH_CHECK(false, "libvar is built without CUDA");
}

std::map<std::string, std::string> gpu_facts() {
  return {};
}

}  // namespace libvar::bench
