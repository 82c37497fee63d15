#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace libvar {

/// The control group of a process, as its /proc/PID/cgroup has it ("/a/b"), or "".
/// @param controller  of version 1 ("cpu"); "" is the group of version 2
std::string control_group(const std::filesystem::path& file, const std::string& controller);

/// Folders of a control group and of those above it up to where they are mounted, which a container
/// may see as its own group. The limits of all of them hold. None for the group "".
std::vector<std::filesystem::path> control_group_folders(const std::string& group,
                                                         const std::filesystem::path& mount);

/// First word of a file as a number; -1 where there is no such file or no number ("max").
std::int64_t read_number(const std::filesystem::path& path);

}  // namespace libvar
