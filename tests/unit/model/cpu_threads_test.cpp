// The number of threads of a CPU: on trees of files that look like /proc and /sys of some machine.

#include "cpu_threads.h"

#include <ATen/core/Tensor.h>

#include <string>
#include <thread>
#include <vector>

#include "catch.h"
#include "control_group.h"
#include "temporary_folder.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

/// A machine of eight processors; n and n + 4 are the SMT siblings of a core where it has them.
class Machine {
 public:
  explicit Machine(bool smt, const std::string& file = "core_cpus_list") {
    for (int i = 0; i < 8; ++i) {
      const std::string core = std::to_string(i % 4);
      siblings(i, smt ? core + "," + std::to_string(i % 4 + 4) : std::to_string(i), file);
    }
  }

  void siblings(int processor, const std::string& list,
                const std::string& file = "core_cpus_list") const {
    write("sys/devices/system/cpu/cpu" + std::to_string(processor) + "/topology/" + file,
          list + "\n");
  }

  void write(const std::string& name, const std::string& text) const {
    write_bytes(root_ / name, text);
  }

  int threads(const std::vector<int>& processors = {0, 1, 2, 3, 4, 5, 6, 7}) const {
    return recommended_threads(processors, root_.path());
  }

 private:
  TemporaryFolder root_;
};

}  // namespace

TEST_CASE("SMT siblings count as one core", "[threads]") {
  CHECK(Machine(false).threads() == 8);
  CHECK(Machine(true).threads() == 4);
  CHECK(Machine(true, "thread_siblings_list").threads() == 4);  // before Linux 5.3
  const Machine ranges(false);  // two processors of four threads each
  for (int i = 0; i < 8; ++i) ranges.siblings(i, i < 4 ? "0-3" : "4-7");
  CHECK(ranges.threads() == 2);
}

TEST_CASE("only processors that may be used count", "[threads]") {
  const Machine machine(true);
  CHECK(machine.threads({1, 5}) == 1);
  CHECK(machine.threads({4, 5, 6}) == 3);  // the lowest sibling is not among them
  CHECK(machine.threads({0, 1, 4}) == 2);
  CHECK(machine.threads({}) == 1);
  // Processor 4 is offline: not in a mask, nor in its sibling's list.
  machine.siblings(0, "0");
  CHECK(machine.threads({0, 1, 2, 3, 5, 6, 7}) == 4);
}

TEST_CASE("a processor without a list of siblings is a core", "[threads]") {
  const Machine machine(true);
  CHECK(machine.threads({0, 4, 8, 9}) == 3);  // there are no files of 8 and 9
  // Were one of these read as far as it goes, 4 would be a sibling of 0.
  for (const std::string list : {"", "siblings", "0,", ",0,4", "0-", "0,-4", "0,4-", "-1,0,4",
                                 "5-0,0,4", "0-3", "0,5-8", "0;4", "0,4x", "0,4,99999999999"}) {
    CAPTURE(list);
    machine.siblings(4, list);
    CHECK(machine.threads() == 5);
  }
  for (const int processor : {4, 5}) machine.siblings(processor, "-1,4-5");
  CHECK(machine.threads() == 6);
}

TEST_CASE("the CPU quota of a control group and of those above it limits threads", "[threads]") {
  const Machine machine(false);
  CHECK(machine.threads() == 8);
  machine.write("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n");
  CHECK(machine.threads() == 8);  // no group is known
  machine.write("proc/self/cgroup", "0::/a/b\n");
  CHECK(machine.threads() == 3);
  machine.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  CHECK(machine.threads() == 8);
  machine.write("sys/fs/cgroup/a/cpu.max", "250000 50000\n");
  CHECK(machine.threads() == 5);
  machine.write("sys/fs/cgroup/a/b/cpu.max", "600000 100000\n");
  CHECK(machine.threads() == 5);
  CHECK(machine.threads({0, 1}) == 2);
  machine.write("sys/fs/cgroup/cpu.max", "400000 100000\n");  // the mount is a container's group
  CHECK(machine.threads() == 4);
  machine.write("proc/self/cgroup", "0::/\n");
  CHECK(machine.threads() == 4);
}

TEST_CASE("a CPU quota is rounded down, to one thread at least", "[threads]") {
  const Machine machine(false);
  machine.write("proc/self/cgroup", "0::/a\n");
  const auto threads_of = [&](const std::string& text) {
    machine.write("sys/fs/cgroup/a/cpu.max", text);
    return machine.threads();
  };
  CHECK(threads_of("299999 100000\n") == 2);
  CHECK(threads_of("150000 100000\n") == 1);
  CHECK(threads_of("50000 100000\n") == 1);
  for (const char* malformed :
       {"", "\n", "200000", "200000 0", "0 100000", "-1 100000", "200000 per 100000", "two of them",
        "99999999999999999999 100000"}) {
    CAPTURE(malformed);
    CHECK(threads_of(malformed) == 8);
  }
}

TEST_CASE("the CPU quota of version 1 of control groups limits threads", "[threads]") {
  const Machine machine(false);
  machine.write("proc/self/cgroup", "12:cpuset:/c\n4:cpu,cpuacct:/a:b/d\n1:name=systemd:/c\n");
  const std::string folder = "sys/fs/cgroup/cpu/a:b/";
  machine.write(folder + "d/cpu.cfs_period_us", "100000\n");
  machine.write(folder + "d/cpu.cfs_quota_us", "-1\n");
  CHECK(machine.threads() == 8);
  machine.write(folder + "cpu.cfs_period_us", "100000\n");
  machine.write(folder + "cpu.cfs_quota_us", "350000\n");
  CHECK(machine.threads() == 3);
  machine.write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  machine.write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n");
  CHECK(machine.threads() == 2);
}

TEST_CASE("a process's control group", "[threads]") {
  const TemporaryFolder folder;
  const auto file = folder / "cgroup";
  CHECK(control_group(file, "").empty());
  write_bytes(file, "no group\n9:\n12:cpuset:/s\n4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/u\n");
  CHECK(control_group(file, "") == "/u");
  CHECK(control_group(file, "cpu") == "/a:b");
  CHECK(control_group(file, "cpuacct") == "/a:b");
  CHECK(control_group(file, "memory").empty());
  CHECK(control_group_folders("/a/b", "/m") ==
        std::vector<std::filesystem::path>{"/m/a/b", "/m/a", "/m"});
  CHECK(control_group_folders("/", "/m") == std::vector<std::filesystem::path>{"/m"});
  CHECK(control_group_folders("", "/m").empty());
  CHECK(control_group_folders("a/b", "/m").empty());
}

TEST_CASE("this machine's threads are at most its processors", "[threads]") {
  CHECK(recommended_threads() >= 1);
  CHECK(recommended_threads() <= static_cast<int>(std::thread::hardware_concurrency()));
}
