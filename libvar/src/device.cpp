#include "device.h"

#include <ATen/core/ivalue.h>
#include <ATen/cpu/Utils.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <charconv>
#include <fstream>

#include "control_group.h"
#include "libvar/error.h"

#ifdef LIBVAR_WITH_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace libvar {
namespace {

#ifdef LIBVAR_WITH_CUDA
int num_cuda_devices() {
  return static_cast<int>(c10::cuda::device_count());
}

constexpr bool kBuiltWithCuda = true;
#else
int num_cuda_devices() {
  return 0;
}

constexpr bool kBuiltWithCuda = false;
#endif

/// Value in bytes of a "Name:   123 kB" line of a file of /proc, or -1.
std::int64_t read_proc_bytes(const char* path, const std::string& name) {
  std::ifstream file(path);
  std::int64_t value = 0;
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, name.size(), name) != 0) continue;
    const char* begin = line.data() + name.size();
    const char* end = line.data() + line.size();
    while (begin != end && (*begin == ':' || *begin == ' ' || *begin == '\t')) ++begin;
    if (std::from_chars(begin, end, value).ec == std::errc()) return value * 1024;
  }
  return -1;
}

/// What a version of control groups calls its files, and lines of memory.stat that count the groups
/// below too.
struct MemoryNames {
  const char *limit, *used, *stat_prefix;
};

MemoryNames memory_names(GroupVersion version) {
  if (version == GroupVersion::k1)
    return {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_"};
  return {"memory.max", "memory.current", ""};
}

/// Bytes of a control group's pages that belong to files: what needs them can read them again.
std::int64_t file_bytes(const std::filesystem::path& stat, const std::string& prefix) {
  std::ifstream file(stat);
  std::string name;
  std::int64_t sum = 0;
  for (std::int64_t value = 0; file >> name >> value;) {
    if (name == prefix + "active_file" || name == prefix + "inactive_file") sum += value;
  }
  return sum;
}

}  // namespace

at::Device parse_device(const std::string& text) {
  if (text == "cpu") return at::kCPU;
  if (text == "auto")
    return num_cuda_devices() > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  int index = 0;
  const char* const end = text.data() + text.size();
  bool valid = text == "cuda";
  if (text.compare(0, 5, "cuda:") == 0) {
    const auto [rest, error] = std::from_chars(text.data() + 5, end, index);
    valid = error == std::errc() && rest == end && index >= 0;
  }
  if (!valid)
    throw ConfigError(c10::str("device: expected auto, cpu, cuda or cuda:N, got '", text, "'"));
  if (!kBuiltWithCuda)
    throw ConfigError(c10::str("device: ", text, ", but this libvar was built without CUDA"));
  if (index >= num_cuda_devices()) {
    throw ConfigError(
        c10::str("device: ", text, ", but ", num_cuda_devices(), " CUDA devices were found"));
  }
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

bool cpu_has_bfloat16_products() {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.toBool();
  };
  return has("avx512_bf16") || has("amx_bf16");
}

std::int64_t available_group_bytes(const std::string& group, const std::filesystem::path& mount,
                                   GroupVersion version) {
  const MemoryNames names = memory_names(version);
  std::int64_t least = -1;
  for (const std::filesystem::path& folder : control_group_folders(group, mount)) {
    const std::int64_t limit = read_number(folder / names.limit);
    if (limit < 0) continue;
    const std::int64_t used = std::max<std::int64_t>(read_number(folder / names.used), 0) -
                              file_bytes(folder / "memory.stat", names.stat_prefix);
    const std::int64_t left = std::max<std::int64_t>(limit - std::max<std::int64_t>(used, 0), 0);
    if (least < 0 || left < least) least = left;
  }
  return least;
}

std::int64_t available_host_bytes() {
  const std::filesystem::path mount = "/sys/fs/cgroup", own = "/proc/self/cgroup";
  std::int64_t least = read_proc_bytes("/proc/meminfo", "MemAvailable");
  for (const std::int64_t left :
       {available_group_bytes(control_group(own, ""), mount, GroupVersion::k2),
        available_group_bytes(control_group(own, "memory"), mount / "memory", GroupVersion::k1)}) {
    if (left >= 0 && (least < 0 || left < least)) least = left;
  }
  return least;
}

std::int64_t available_bytes(at::Device device) {
#ifdef LIBVAR_WITH_CUDA
  if (device.is_cuda()) {
    const auto free = c10::cuda::CUDACachingAllocator::get()->getMemoryInfo(device.index()).first;
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
    return static_cast<std::int64_t>(free) + stats.reserved_bytes[0].current -
           stats.allocated_bytes[0].current;
  }
#endif
  return device.is_cpu() ? available_host_bytes() : -1;
}

std::int64_t peak_memory_bytes(at::Device device) {
#ifdef LIBVAR_WITH_CUDA
  if (device.is_cuda())
    return c10::cuda::CUDACachingAllocator::getDeviceStats(device.index()).allocated_bytes[0].peak;
#endif
  return read_proc_bytes("/proc/self/status", "VmHWM");
}

void synchronize(at::Device device) {
#ifdef LIBVAR_WITH_CUDA
  // Not the device: another thread may be capturing a graph on it, which that would end.
  if (device.is_cuda()) c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
#endif
}

at::ScalarType parse_dtype(const std::string& name) {
  if (name == "fp32" || name == "float32") return at::kFloat;
  if (name == "bf16" || name == "bfloat16") return at::kBFloat16;
  if (name == "fp16" || name == "float16") return at::kHalf;
  throw ConfigError(c10::str("dtype: expected auto, fp32, bf16 or fp16, got '", name, "'"));
}

}  // namespace libvar
