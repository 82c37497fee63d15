// bench_kernels: checks outputs, then times libvar's ops beside their peers.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>
#include <iostream>
#include <string>
#include <vector>

#include "kernels/cases.h"
#include "kernels/machine.h"

namespace libvar::bench {
namespace {

constexpr const char* kUsage = R"(usage: bench_kernels [flags]
  --device=auto|cpu|cuda   where it runs; auto: a GPU where there is one
  --grid=cpu|cuda          which list of cases; default: the device's
  --quick                  11 rounds for each case
  --tiny                   small sizes, 3 rounds: does everything run, is every output right
  --rounds=N               N rounds for each case
  --threads=N              threads of the CPU's ops; default 1
  --break-libvar           spoil libvar's outputs: the check must fail
  --benchmark_filter=REGEX --benchmark_list_tests --benchmark_out=FILE.json
  --benchmark_context=KEY=VALUE,...   and whatever else Google Benchmark takes
)";

/// The cases print themselves; this only remembers and prints failures.
class FailureReporter : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (!run.error_occurred) continue;
      ++failures;
      std::cout << "\n" << run.benchmark_name() << "\n    FAILED: " << run.error_message << "\n";
    }
  }

  int failures = 0;
};

/// The value where `argument` is `--name=value`.
bool take(const std::string& argument, const std::string& name, std::string* value) {
  const std::string prefix = name + "=";
  if (argument.rfind(prefix, 0) != 0) return false;
  *value = argument.substr(prefix.size());
  return true;
}

struct CommandLine {
  Options options;
  int threads = 1;
  std::vector<char*> rest;  ///< for Google Benchmark
};

/// Takes this program's own flags; throws std::invalid_argument on a bad value.
CommandLine parse(int argc, char** argv) {
  CommandLine line;
  std::string device = "auto";
  std::string grid;
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    std::string value;
    if (take(argument, "--device", &device) || take(argument, "--grid", &grid)) continue;
    if (take(argument, "--rounds", &value)) {
      line.options.rounds = std::stoi(value);
    } else if (take(argument, "--threads", &value)) {
      line.threads = std::stoi(value);
    } else if (argument == "--quick") {
      line.options.rounds = 11;
    } else if (argument == "--tiny") {
      line.options.tiny = true;
    } else if (argument == "--break-libvar") {
      line.options.break_libvar = true;
    } else {
      line.rest.push_back(argv[i]);
    }
  }
  if (device == "auto") device = at::hasCUDA() ? "cuda" : "cpu";
  if (grid.empty()) grid = device;
  for (const std::string& value : {device, grid}) {
    if (value != "cpu" && value != "cuda")
      throw std::invalid_argument("expected cpu or cuda, got " + value);
  }
  line.options.device = device == "cuda" ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  line.options.grid = grid;
  return line;
}

int run(int argc, char** argv) {
  CommandLine line = parse(argc, argv);
  int rest = static_cast<int>(line.rest.size());
  line.rest.push_back(nullptr);
  benchmark::Initialize(&rest, line.rest.data());
  if (benchmark::ReportUnrecognizedArguments(rest, line.rest.data())) {
    std::cerr << kUsage;
    return 2;
  }
  at::set_num_threads(line.threads);
  register_ceilings(line.options);
  register_attention(line.options);
  register_redistribute(line.options);
  register_norms(line.options);
  register_skinny_linear(line.options);
  register_layer(line.options);
  describe_machine(line.options, line.threads);
  FailureReporter reporter;
  const std::size_t num_cases = benchmark::RunSpecifiedBenchmarks(&reporter);
  if (num_cases == 0) std::cerr << "bench_kernels: no case matches the filter\n";
  if (reporter.failures > 0) std::cout << "\ncases that failed: " << reporter.failures << "\n";
  return num_cases == 0 || reporter.failures > 0 ? 1 : 0;
}

}  // namespace
}  // namespace libvar::bench

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") == 0) {
      std::cout << libvar::bench::kUsage;
      return 0;
    }
  }
  try {
    return libvar::bench::run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "bench_kernels: " << error.what() << "\n";
    return 2;
  }
}
