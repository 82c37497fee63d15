#pragma once

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <filesystem>
#include <string>

namespace libvar {

/// The device that a user's text names: auto (CUDA where there is one), cpu, cuda, cuda:N.
/// @throws ConfigError  another text, no such device, or a build without CUDA
at::Device parse_device(const std::string& text);

/// True where the processor multiplies bfloat16 in hardware (AVX512-BF16 or AMX).
bool cpu_has_bfloat16_products();

/// Host memory that can still be used without swapping, or -1 where the system doesn't say.
std::int64_t available_host_bytes();

enum class GroupVersion { k1, k2 };

/// What the memory limits of a control group and of those above it leave; pages of files count as
/// free. -1: there is no limit.
/// @param group  as /proc/self/cgroup has it ("/a/b")
/// @param mount  where the groups are mounted; of version 1 those of the memory controller
std::int64_t available_group_bytes(const std::string& group, const std::filesystem::path& mount,
                                   GroupVersion version);

/// Memory that a computation on the device can still take, or -1 where that isn't known: of the
/// host, or free on the CUDA device and in the reserve of its allocator.
std::int64_t available_bytes(at::Device device);

/// Most memory used so far: allocated on a CUDA device, resident memory of the process on the CPU.
std::int64_t peak_memory_bytes(at::Device device);

/// Waits until the device has done what was asked of it in the current stream.
void synchronize(at::Device device);

/// The dtype called fp32, bf16 or fp16, or as an archive's manifest spells it (float32, bfloat16,
/// float16).
/// @throws ConfigError  another name
at::ScalarType parse_dtype(const std::string& name);

}  // namespace libvar
