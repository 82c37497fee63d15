#pragma once

#include <string>

namespace libvar::bench {

/// The name of the current CUDA device; empty where libvar is built without CUDA.
std::string gpu_name();

}  // namespace libvar::bench
