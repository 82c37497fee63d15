#pragma once

// One case: several ways to compute the same thing, checked, then timed in turn within each round.

#include <ATen/core/Tensor.h>
#include <benchmark/benchmark.h>

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace libvar::bench {

/// What the command line settles for every case.
struct Options {
  at::Device device = at::kCPU;
  std::string grid = "cpu";  ///< which list of cases, "cpu" or "cuda"; "cuda" on a CPU is a dry run
  int rounds = 0;            ///< 0: each case's own number
  bool tiny = false;         ///< small sizes: does everything run, is every output right
  bool break_libvar = false;  ///< spoil libvar's outputs, so that a test sees the check fail
};

/// One way to compute a case's result.
struct Variant {
  std::string name;
  std::function<at::Tensor(std::size_t)> run;  ///< on one of the case's input sets
  /// Error of an output of set 0 as a share of what is allowed; empty for ceilings, which have
  /// none.
  std::function<double(const at::Tensor&)> error;
  /// A wrong output of libvar's ends the case with an error; a peer that is wrong or can't run is
  /// left out with a note.
  bool ours = false;
};

/// Time of one variant over that of another, and the bar that it must hold.
struct Ratio {
  std::string numerator, denominator;
  std::vector<std::string> any_of;  ///< denominator names the fastest of these; empty: a variant
  std::optional<double> at_most, at_least;
};

struct Workload {
  std::vector<Variant> variants;  ///< a variant and its copy "..._again" are the A/A pair
  std::size_t sets = 1;           ///< input sets that calls take in turn
  std::vector<Ratio> ratios;
  std::map<std::string, double> facts;  ///< bytes, flops, selected_share
  std::shared_ptr<void> data;           ///< what the variants refer to
};

struct Case {
  std::string name;
  int rounds = 301;
  std::function<Workload()> prepare;
};

/// Times one call of each variant of a workload.
class Timer {
 public:
  virtual ~Timer() = default;

  /// Microseconds of one call of the variant.
  virtual double call(std::size_t variant) = 0;
};

/// CUDA: each variant as a graph of several calls, between two events. Defined where CUDA is.
std::unique_ptr<Timer> make_cuda_timer(const Workload& workload);
/// Most bytes that one call holds beside its inputs, its result included; CUDA only.
double peak_bytes_of_call(const Variant& variant);

/// Last level cache of the CPU, or the L2 of the GPU, in bytes.
std::size_t cache_bytes(const at::Device& device);
/// Sets that make the inputs four times as large as that cache, so that each call finds its own
/// cold.
std::size_t cold_sets(const at::Device& device, std::size_t bytes_per_set);
void synchronize(const at::Device& device);
/// Name, driver, clocks, versions; empty without CUDA.
std::map<std::string, std::string> gpu_facts();

/// Registers the case with Google Benchmark: one iteration is one round.
void register_case(const Options& options, Case benchmark_case);

std::string dtype_name(at::ScalarType type);

}  // namespace libvar::bench
