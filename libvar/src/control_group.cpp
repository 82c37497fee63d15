#include "control_group.h"

#include <c10/util/StringUtil.h>

#include <fstream>

namespace libvar {

std::string control_group(const std::filesystem::path& file, const std::string& controller) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {  // "4:cpu,cpuacct:/a/b", "0::/a/b"
    const std::size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    // Between commas a name is found as a whole word; "" in the empty list, that of version 2.
    const std::string list = c10::str(',', line.substr(first + 1, second - first - 1), ',');
    if (list.find(c10::str(',', controller, ',')) != std::string::npos)
      return line.substr(second + 1);
  }
  return {};
}

std::vector<std::filesystem::path> control_group_folders(const std::string& group,
                                                         const std::filesystem::path& mount) {
  std::vector<std::filesystem::path> folders;
  if (group.empty() || group.front() != '/') return folders;
  for (std::string rest = group; rest.size() > 1; rest.resize(rest.rfind('/')))
    folders.push_back(mount / rest.substr(1));
  folders.push_back(mount);
  return folders;
}

std::int64_t read_number(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::int64_t value = -1;
  return file >> value ? value : -1;
}

}  // namespace libvar
