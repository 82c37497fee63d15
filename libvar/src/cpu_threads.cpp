#include "cpu_threads.h"

#include <sched.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <set>
#include <string>

#include "control_group.h"

namespace libvar {
namespace {

constexpr std::int64_t kNoQuota = std::numeric_limits<std::int64_t>::max();

/// The processors that the calling thread may run on; none where the system doesn't say.
std::vector<int> allowed_processors() {
  constexpr std::size_t kMostSets = 64;  // of 1024 processors each; Linux has no more than 8
  std::vector<int> processors;
  // The kernel refuses a mask smaller than its own.
  for (std::size_t sets = 1; sets <= kMostSets; sets *= 2) {
    std::vector<cpu_set_t> mask(sets);
    const std::size_t bytes = sets * sizeof(cpu_set_t);
    if (sched_getaffinity(0, bytes, mask.data()) != 0) continue;
    for (std::size_t processor = 0; processor < sets * CPU_SETSIZE; ++processor) {
      if (CPU_ISSET_S(processor, bytes, mask.data()))
        processors.push_back(static_cast<int>(processor));
    }
    break;
  }
  return processors;
}

/// Lowest number of a list as /sys has it ("0-3,8"); none where it isn't one with the processor.
std::optional<int> lowest_of_list(const std::string& list, int processor) {
  int lowest = processor;
  bool found = false;
  const char* const end = list.data() + list.size();
  for (const char* at = list.data();; ++at) {
    int first = -1;
    auto number = std::from_chars(at, end, first);
    int last = first;
    if (number.ec == std::errc() && number.ptr != end && *number.ptr == '-')
      number = std::from_chars(number.ptr + 1, end, last);
    if (number.ec != std::errc() || first < 0 || last < first) return std::nullopt;
    lowest = std::min(lowest, first);
    found = found || (first <= processor && processor <= last);
    at = number.ptr;
    if (at == end) break;
    if (*at != ',') return std::nullopt;
  }
  return found ? std::optional<int>(lowest) : std::nullopt;
}

/// A number that a processor has in common with its SMT siblings alone. They share the units that
/// multiply, which one thread of dense arithmetic keeps busy.
int core_of(int processor, const std::filesystem::path& processors) {
  const auto folder = processors / ("cpu" + std::to_string(processor)) / "topology";
  // Linux 5.3 and later; the name before that.
  for (const char* name : {"core_cpus_list", "thread_siblings_list"}) {
    std::ifstream file(folder / name);
    std::string list;
    file >> list;
    if (const std::optional<int> lowest = lowest_of_list(list, processor)) return *lowest;
  }
  return processor;
}

/// Whole CPUs in the least quota that holds for the process.
std::int64_t whole_cpus_of_quota(const std::filesystem::path& root) {
  const std::filesystem::path own = root / "proc/self/cgroup", mounts = root / "sys/fs/cgroup";
  std::int64_t least = kNoQuota;
  const auto limit = [&least](std::int64_t quota_us, std::int64_t period_us) {
    if (quota_us > 0 && period_us > 0) least = std::min(least, quota_us / period_us);
  };
  for (const auto& folder : control_group_folders(control_group(own, ""), mounts)) {
    std::ifstream file(folder / "cpu.max");  // "150000 100000", or "max 100000"
    std::int64_t quota_us = 0, period_us = 0;
    if (file >> quota_us >> period_us) limit(quota_us, period_us);
  }
  for (const auto& folder : control_group_folders(control_group(own, "cpu"), mounts / "cpu"))
    limit(read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us"));
  return least;
}

}  // namespace

// A quota is rounded down, to 1 where it is 1.5. Go and Java round up: their threads work on things
// of their own. Ours share each operator in equal parts and wait for the last one, spinning, and a
// group that has used up its quota stands still, all threads of it, until the next period. One
// thread too many makes that happen in every period; what is lost by one too few is less than one
// CPU, of which the rest of the process takes some.
int recommended_threads(const std::vector<int>& processors, const std::filesystem::path& root) {
  std::set<int> cores;
  for (const int processor : processors)
    cores.insert(core_of(processor, root / "sys/devices/system/cpu"));
  const auto count = static_cast<std::int64_t>(cores.size());
  return static_cast<int>(std::max<std::int64_t>(std::min(count, whole_cpus_of_quota(root)), 1));
}

int recommended_threads() {
  return recommended_threads(allowed_processors(), "/");
}

}  // namespace libvar
