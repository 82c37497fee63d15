// Facts of the machine that a number means nothing without.

#include <ATen/ATen.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include <sstream>

#include "cpu_field.h"
#include "kernels/harness.h"
#include "kernels/machine.h"

namespace libvar::bench {
namespace {

/// Of the processor's many flags those that the kernels and LibTorch choose by.
std::string vector_flags() {
  std::istringstream all(cpu_field("flags"));
  std::string result;
  for (std::string flag; all >> flag;) {
    if (flag == "avx2" || flag == "fma" || flag.rfind("avx512", 0) == 0 ||
        flag.rfind("amx", 0) == 0) {
      result += (result.empty() ? "" : " ") + flag;
    }
  }
  return result;
}

}  // namespace

std::size_t last_level_cache_bytes() {
  std::size_t largest = 0;
  for (const auto& cache : benchmark::CPUInfo::Get().caches) {
    if (cache.type != "Instruction")
      largest = std::max(largest, static_cast<std::size_t>(cache.size));
  }
  return largest > 0 ? largest : std::size_t{32} << 20;
}

void describe_machine(const Options& options, int threads) {
  benchmark::AddCustomContext("device", options.device.is_cuda() ? "cuda" : "cpu");
  benchmark::AddCustomContext("grid", options.grid);
  benchmark::AddCustomContext("sizes", options.tiny ? "tiny" : "full");
  benchmark::AddCustomContext("cpu", cpu_field("model name"));
  benchmark::AddCustomContext("cpu_flags", vector_flags());
  benchmark::AddCustomContext("cpu_cores", std::to_string(sysconf(_SC_NPROCESSORS_ONLN)));
  benchmark::AddCustomContext("last_level_cache_bytes", std::to_string(last_level_cache_bytes()));
  benchmark::AddCustomContext("threads", std::to_string(threads));
  benchmark::AddCustomContext("torch", TORCH_VERSION);
  benchmark::AddCustomContext("compiler", "g++ " __VERSION__);
  for (const auto& [key, value] : gpu_facts()) benchmark::AddCustomContext(key, value);
}

}  // namespace libvar::bench
