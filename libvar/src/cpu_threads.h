#pragma once

#include <filesystem>
#include <vector>

#include "libvar/threads.h"

namespace libvar {

/// recommended_threads() for a process that may run on these processors.
/// @param root  folder in which proc/self/cgroup, sys/fs/cgroup and sys/devices/system/cpu are
int recommended_threads(const std::vector<int>& processors, const std::filesystem::path& root);

}  // namespace libvar
