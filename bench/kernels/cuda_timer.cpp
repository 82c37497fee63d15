// The CUDA side of harness.h.

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/cuda/CUDAEvent.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/cudnn/Types.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdio>

#include "kernels/harness.h"
#include "kernels/machine.h"

namespace libvar::bench {
namespace {

// As many calls as a decoder has layers between two touches of the same cache, at least.
constexpr std::size_t kLeastCallsOfGraph = 8;

/// One graph per variant; it calls the variant once on each input set, or several times on the
/// only one (hot). Launch gaps inside a graph are part of the time, as they are in a decoder.
/// A variant that can't be captured is called directly, host time included.
class GraphTimer : public Timer {
 public:
  explicit GraphTimer(const Workload& workload)
      : workload_(workload),
        calls_(std::max(kLeastCallsOfGraph, workload.sets)),
        stream_(c10::cuda::getStreamFromPool()) {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    for (const Variant& variant : workload.variants) {
      for (int i = 0; i < 3; ++i) variant.run(0);  // workspaces, lazily loaded kernels
      stream_.synchronize();
      graphs_.push_back(captured(variant));
    }
  }

  double call(std::size_t variant) override {
    const c10::cuda::CUDAStreamGuard guard(stream_);
    begin_.record(stream_);
    if (graphs_[variant] != nullptr) {
      graphs_[variant]->replay();
    } else {
      call_each_set(workload_.variants[variant]);
    }
    end_.record(stream_);
    end_.synchronize();
    return 1e3 * begin_.elapsed_time(end_) / static_cast<double>(calls_);
  }

 private:
  void call_each_set(const Variant& variant) const {
    for (std::size_t i = 0; i < calls_; ++i) variant.run(i % workload_.sets);
  }

  std::unique_ptr<at::cuda::CUDAGraph> captured(const Variant& variant) const {
    auto graph = std::make_unique<at::cuda::CUDAGraph>();
    graph->capture_begin();
    try {
      call_each_set(variant);
      graph->capture_end();
      return graph;
    } catch (const std::exception&) {
      std::printf("    note: %s is not captured, host time counts\n", variant.name.c_str());
    }
    try {
      graph->capture_end();  // the stream must leave the capture, whatever became of it
    } catch (const std::exception&) {
      static_cast<void>(cudaGetLastError());
    }
    return nullptr;
  }

  const Workload& workload_;
  std::size_t calls_;
  c10::cuda::CUDAStream stream_;
  std::vector<std::unique_ptr<at::cuda::CUDAGraph>> graphs_;
  at::cuda::CUDAEvent begin_{cudaEventDefault}, end_{cudaEventDefault};
};

/// First line that the command prints; empty where it fails.
std::string line_of(const char* command) {
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  std::array<char, 512> buffer{};
  std::string line = std::fgets(buffer.data(), buffer.size(), pipe) != nullptr ? buffer.data() : "";
  pclose(pipe);
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.pop_back();
  return line;
}

}  // namespace

std::unique_ptr<Timer> make_cuda_timer(const Workload& workload) {
  return std::make_unique<GraphTimer>(workload);
}

double peak_bytes_of_call(const Variant& variant) {
  const c10::DeviceIndex device = c10::cuda::current_device();
  const auto total = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
  c10::cuda::CUDACachingAllocator::resetPeakStats(device);
  const auto before =
      c10::cuda::CUDACachingAllocator::getDeviceStats(device).allocated_bytes[total].current;
  variant.run(0);
  c10::cuda::device_synchronize();
  const auto peak =
      c10::cuda::CUDACachingAllocator::getDeviceStats(device).allocated_bytes[total].peak;
  return static_cast<double>(peak - before);
}

std::size_t cache_bytes(const at::Device& device) {
  if (!device.is_cuda()) return last_level_cache_bytes();
  return static_cast<std::size_t>(at::cuda::getCurrentDeviceProperties()->l2CacheSize);
}

void synchronize(const at::Device& device) {
  if (device.is_cuda()) c10::cuda::device_synchronize();
}

std::map<std::string, std::string> gpu_facts() {
  if (!at::hasCUDA()) return {};
  const cudaDeviceProp* properties = at::cuda::getCurrentDeviceProperties();
  int runtime = 0;
  C10_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
  return {{"gpu", properties->name},
          {"gpu_multiprocessors", std::to_string(properties->multiProcessorCount)},
          {"gpu_l2_bytes", std::to_string(properties->l2CacheSize)},
          {"gpu_memory_bytes", std::to_string(properties->totalGlobalMem)},
          {"gpu_driver", line_of("nvidia-smi --query-gpu=driver_version --format=csv,noheader")},
          {"gpu_clocks_sm_mem",
           line_of("nvidia-smi --query-gpu=clocks.sm,clocks.mem --format=csv,noheader")},
          {"gpu_clocks_max_sm_mem",
           line_of("nvidia-smi --query-gpu=clocks.max.sm,clocks.max.mem --format=csv,noheader")},
          {"cuda_runtime", std::to_string(runtime)},
          {"cudnn", std::to_string(at::detail::getCUDAHooks().versionRuntimeCuDNN())}};
}

}  // namespace libvar::bench
