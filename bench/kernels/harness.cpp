#include "kernels/harness.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <time.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <set>
#include <utility>

#include "kernels/statistics.h"

namespace libvar::bench {
namespace {

constexpr int kWarmUpRounds = 3;
const std::string kAgain = "_again";

/// The processor time of the calling thread: what another program's turn on the core takes is not
/// counted. It is a system call of about 0.2 us, so short calls are timed several at a time.
double thread_us() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return 1e6 * static_cast<double>(now.tv_sec) + 1e-3 * static_cast<double>(now.tv_nsec);
}

double wall_us() {
  return std::chrono::duration<double, std::micro>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Calls of a CPU op; each takes the next input set. One thread is timed by its processor time,
/// several by the wall clock.
class CpuTimer : public Timer {
 public:
  explicit CpuTimer(const Workload& workload)
      : workload_(workload), now_(at::get_num_threads() == 1 ? thread_us : wall_us) {
    for (std::size_t i = 0; i < workload.variants.size(); ++i) {
      time(i, 1);
      const double us = std::max(time(i, 1), 0.1);
      calls_.push_back(std::clamp(static_cast<int>(kLeastSampleUs / us), 1, 64));
    }
  }

  double call(std::size_t variant) override { return time(variant, calls_[variant]); }

 private:
  static constexpr double kLeastSampleUs = 100.0;

  double time(std::size_t variant, int calls) {
    const double begin = now_();
    for (int i = 0; i < calls; ++i) {
      const at::Tensor out = workload_.variants[variant].run(next_set_++ % workload_.sets);
      benchmark::DoNotOptimize(out.const_data_ptr());
    }
    return (now_() - begin) / calls;
  }

  const Workload& workload_;
  double (*now_)();
  std::vector<int> calls_;
  std::size_t next_set_ = 0;
};

/// Output of a run into memory that held NaN: the first result is spoilt and given back, and
/// allocators hand out the block they got last. An element that nobody writes is then seen.
at::Tensor run_on_poison(const Options& options, const Variant& variant) {
  at::Tensor first = variant.run(0);
  if (first.is_floating_point()) first.fill_(std::nan(""));
  first.reset();
  at::Tensor out = variant.run(0);
  synchronize(options.device);
  return out;
}

std::string first_line(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  const std::string text =
      torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  return text.substr(0, text.find('\n'));
}

/// What a case has found out so far.
struct Progress {
  std::map<std::string, double> counters;
  std::vector<std::string> notes;
  std::string failure;  ///< not empty: one of libvar's own outputs is wrong

  void leave_out(const Variant& variant, const std::string& why) {
    if (variant.ours && failure.empty()) failure = variant.name + ": " + why;
    notes.push_back(variant.name + " left out: " + why);
  }
};

/// Runs every variant once on set 0 and keeps those whose output is right.
void check_outputs(const Options& options, Workload& workload, Progress& progress) {
  std::vector<Variant> kept;
  for (Variant& variant : workload.variants) {
    try {
      at::Tensor out = run_on_poison(options, variant);
      if (variant.ours && options.break_libvar) out = out * 1.5;
      if (variant.error) {
        const double error = variant.error(out);
        progress.counters["error_share/" + variant.name] = error;
        if (!(error <= 1.0)) {
          progress.leave_out(variant,
                             "output off by " + std::to_string(error) + " times the error allowed");
          continue;
        }
      }
      out.reset();
      if (options.device.is_cuda()) {
        progress.counters["peak_bytes/" + variant.name] = peak_bytes_of_call(variant);
      }
      kept.push_back(std::move(variant));
    } catch (const std::exception& error) {
      progress.leave_out(variant, first_line(error));
    }
  }
  workload.variants = std::move(kept);
}

using Samples = std::map<std::string, std::vector<double>>;

/// Half of the range in which two runs of the same variant can't be told apart, 0 without an A/A
/// pair.
double spread_of(const Samples& samples) {
  for (const auto& [name, times] : samples) {
    const auto again = samples.find(name + kAgain);
    if (again == samples.end()) continue;
    const Summary same = summarise(quotients(times, again->second));
    return std::max(std::fabs(same.low - 1.0), std::fabs(same.high - 1.0));
  }
  return 0.0;
}

/// The variant that a ratio's denominator stands for, or none where it was left out.
const std::vector<double>* denominator_of(const Ratio& ratio, const Samples& samples) {
  if (ratio.any_of.empty()) {
    const auto found = samples.find(ratio.denominator);
    return found == samples.end() ? nullptr : &found->second;
  }
  const std::vector<double>* best = nullptr;
  double best_median = 0.0;
  for (const std::string& name : ratio.any_of) {
    const auto found = samples.find(name);
    if (found == samples.end()) continue;
    const double median = summarise(found->second).median;
    if (best == nullptr || median < best_median) {
      best = &found->second;
      best_median = median;
    }
  }
  return best;
}

/// Whether a bar holds; nothing is decided where the same code twice differs by more than a tenth.
std::string verdict(const Ratio& ratio, double value, double spread) {
  if (!ratio.at_most && !ratio.at_least) return "";
  char bar[32];
  std::snprintf(bar, sizeof bar, "  at %s %.2f: ", ratio.at_most ? "most" : "least",
                ratio.at_most ? *ratio.at_most : *ratio.at_least);
  if (spread > 0.1) return std::string(bar) + "not decided";
  const bool holds =
      ratio.at_most ? value <= *ratio.at_most + spread : value >= *ratio.at_least * (1.0 - spread);
  return std::string(bar) + (holds ? "holds" : "MISSED");
}

void print_ratio(const Ratio& ratio, const Summary& value, double spread) {
  std::printf("    %-34s %7.3f  [%.3f, %.3f]%s\n",
              (ratio.numerator + " / " + ratio.denominator).c_str(), value.median, value.low,
              value.high, verdict(ratio, value.median, spread).c_str());
}

void report(const std::string& name, const Workload& workload, const Samples& samples,
            Progress& progress) {
  const double spread = spread_of(samples);
  const auto bytes = workload.facts.find("bytes");
  progress.counters.insert(workload.facts.begin(), workload.facts.end());
  progress.counters["aa_spread"] = spread;
  progress.counters["sets"] = static_cast<double>(workload.sets);
  std::printf("\n%s   A/A spread %.2f %%\n", name.c_str(), 100.0 * spread);
  for (const Variant& variant : workload.variants) {
    const Summary time = summarise(samples.at(variant.name));
    const std::string prefix = "us/" + variant.name + "/";
    progress.counters[prefix + "median"] = time.median;
    progress.counters[prefix + "min"] = time.min;
    progress.counters[prefix + "p10"] = time.p10;
    progress.counters[prefix + "p90"] = time.p90;
    std::printf("    %-22s %10.1f us  (%.1f to %.1f)", variant.name.c_str(), time.median, time.p10,
                time.p90);
    if (bytes != workload.facts.end())
      std::printf("  %7.1f GB/s", bytes->second / time.median / 1e3);
    std::printf("\n");
  }
  for (const Ratio& ratio : workload.ratios) {
    const auto numerator = samples.find(ratio.numerator);
    const std::vector<double>* denominator = denominator_of(ratio, samples);
    if (numerator == samples.end() || denominator == nullptr) continue;
    const Summary value = summarise(quotients(numerator->second, *denominator));
    const std::string pair = ratio.numerator + "/" + ratio.denominator;
    progress.counters["ratio/" + pair] = value.median;
    progress.counters["ratio_low/" + pair] = value.low;
    progress.counters["ratio_high/" + pair] = value.high;
    if (ratio.at_most) progress.counters["at_most/" + pair] = *ratio.at_most;
    if (ratio.at_least) progress.counters["at_least/" + pair] = *ratio.at_least;
    print_ratio(ratio, value, spread);
  }
  for (const std::string& note : progress.notes) std::printf("    note: %s\n", note.c_str());
  std::fflush(stdout);
}

/// Variants that a bar speaks of, and the A/A pair; the others are there to be looked at.
std::set<std::string> variants_of_bars(const Workload& workload) {
  std::set<std::string> names;
  for (const Ratio& ratio : workload.ratios) {
    if (!ratio.at_most && !ratio.at_least) continue;
    names.insert({ratio.numerator, ratio.denominator});
    names.insert(ratio.any_of.begin(), ratio.any_of.end());
  }
  for (const Variant& variant : workload.variants) {
    if (variant.name.find(kAgain) == std::string::npos) continue;
    names.insert({variant.name, variant.name.substr(0, variant.name.size() - kAgain.size())});
  }
  return names;
}

/// Rounds: each variant once, in an order drawn anew, so that none always follows the same other.
/// On a CPU what no bar speaks of, often the slowest, runs in every fourth round.
Samples time_rounds(benchmark::State& state, const Options& options, const Workload& workload) {
  const std::unique_ptr<Timer> timer =
      options.device.is_cuda() ? make_cuda_timer(workload) : std::make_unique<CpuTimer>(workload);
  const std::set<std::string> always = variants_of_bars(workload);
  std::vector<std::size_t> order(workload.variants.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (int round = 0; round < kWarmUpRounds; ++round) {
    for (const std::size_t i : order) timer->call(i);
  }
  std::mt19937 random(20261122);
  Samples samples;
  std::size_t round = 0;
  for ([[maybe_unused]] auto _ : state) {
    std::shuffle(order.begin(), order.end(), random);
    double round_us = 0.0;
    for (const std::size_t i : order) {
      const std::string& name = workload.variants[i].name;
      const bool skip = round % 4 != 0 && !options.device.is_cuda() && !always.contains(name);
      const double us = skip ? std::nan("") : timer->call(i);
      samples[name].push_back(us);
      round_us += skip ? 0.0 : us;
    }
    state.SetIterationTime(round_us * 1e-6);
    ++round;
  }
  return samples;
}

void run_checked_case(benchmark::State& state, const Options& options, const Case& benchmark_case) {
  Workload workload = benchmark_case.prepare();
  Progress progress;
  check_outputs(options, workload, progress);
  TORCH_CHECK(progress.failure.empty(), progress.failure);
  TORCH_CHECK(!workload.variants.empty(), "no variant could run");
  const Samples samples = time_rounds(state, options, workload);
  report(benchmark_case.name, workload, samples, progress);
  for (const auto& [name, value] : progress.counters) state.counters[name] = value;
  std::string label;
  for (const std::string& note : progress.notes) label += (label.empty() ? "" : "; ") + note;
  state.SetLabel(label);
}

/// A case that throws, for want of memory say, is reported as failed; the others go on.
void run_case(benchmark::State& state, const Options& options, const Case& benchmark_case) {
  try {
    run_checked_case(state, options, benchmark_case);
  } catch (const std::exception& error) {
    state.SkipWithError(first_line(error).c_str());
  }
}

}  // namespace

std::size_t cold_sets(const at::Device& device, std::size_t bytes_per_set) {
  const std::size_t wanted = 4 * cache_bytes(device) / std::max<std::size_t>(bytes_per_set, 1) + 1;
  const std::size_t least = device.is_cuda() ? 8 : 2;  // a model has more layers than that
  const std::size_t affordable = (std::size_t{4} << 30) / std::max<std::size_t>(bytes_per_set, 1);
  return std::clamp(wanted, least, std::clamp<std::size_t>(affordable, least, 512));
}

void register_case(const Options& options, Case benchmark_case) {
  const int own = options.tiny ? 3 : benchmark_case.rounds;
  const int rounds = options.rounds > 0 ? options.rounds : own;
  benchmark::RegisterBenchmark(benchmark_case.name.c_str(),
                               [options, benchmark_case](benchmark::State& state) {
                                 run_case(state, options, benchmark_case);
                               })
      ->Iterations(rounds)
      ->UseManualTime()
      ->Unit(benchmark::kMicrosecond);
}

std::string dtype_name(at::ScalarType type) {
  return type == at::kFloat ? "fp32" : type == at::kHalf ? "fp16" : "bf16";
}

}  // namespace libvar::bench
