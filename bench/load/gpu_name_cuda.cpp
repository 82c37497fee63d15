#include <ATen/cuda/CUDAContextLight.h>

#include "load/gpu_name.h"

namespace libvar::bench {

std::string gpu_name() {
  return at::cuda::getCurrentDeviceProperties()->name;
}

}  // namespace libvar::bench
