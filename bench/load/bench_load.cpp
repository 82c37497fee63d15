// bench_load: how fast an archive is loaded, beside plain reads of its file.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu_field.h"
#include "huge_pages.h"
#include "kernels/statistics.h"
#include "libvar/model.h"
#include "load/gpu_name.h"

namespace libvar::bench {
namespace {

using nlohmann::ordered_json;

struct Flags {
  std::string archive = {}, device = "cpu", commit = "unknown", out = {};
  int rounds = 9, threads = 1;
};

/// The archive's file, read as fast as plain calls can.
class File {
 public:
  explicit File(const std::string& path)
      : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)),
        bytes_(std::filesystem::file_size(path)) {
    if (descriptor_ < 0) throw std::runtime_error(path + ": can't be opened");
  }

  ~File() { ::close(descriptor_); }

  File(const File&) = delete;
  File& operator=(const File&) = delete;

  std::size_t bytes() const { return bytes_; }

  /// Each thread reads a part of the file: piece after piece into the same small buffer, or to its
  /// place in `target`.
  void read(int threads, char* target) const {
    std::vector<std::thread> readers;
    const std::size_t part = bytes_ / static_cast<std::size_t>(threads) + 1;
    for (std::size_t begin = 0; begin < bytes_; begin += part)
      readers.emplace_back([=, this] { read_part(begin, std::min(bytes_, begin + part), target); });
    for (std::thread& reader : readers) reader.join();
  }

  /// Pages that the system keeps of the file leave memory: the next read is the disk's.
  void forget() const { ::posix_fadvise(descriptor_, 0, 0, POSIX_FADV_DONTNEED); }

 private:
  static constexpr std::size_t kPiece = std::size_t{1} << 20;

  void read_part(std::size_t begin, std::size_t end, char* target) const {
    std::vector<char> buffer(target == nullptr ? kPiece : 0);
    while (begin < end) {
      char* to = target == nullptr ? buffer.data() : target + begin;
      const ssize_t count =
          ::pread(descriptor_, to, std::min(kPiece, end - begin), static_cast<off_t>(begin));
      if (count <= 0) throw std::runtime_error("the archive can't be read");
      begin += static_cast<std::size_t>(count);
    }
  }

  int descriptor_;
  std::size_t bytes_;
};

double seconds_of(const std::function<void()>& call) {
  const auto begin = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

/// Loads and lets go; what is measured is the load.
double load_seconds(const Flags& flags, const std::string& weights) {
  LoadOptions options;
  options.device = flags.device;
  options.weights = weights;
  std::shared_ptr<const Model> model;
  return seconds_of([&] { model = Model::load(flags.archive, options); });
}

/// Into memory that this process did not have before, as a copy of the weights is.
double read_new_seconds(const Flags& flags, const File& file) {
  HugePageArena memory;
  return seconds_of([&] {
    const at::Tensor target = memory.empty({static_cast<std::int64_t>(file.bytes())}, at::kByte);
    file.read(flags.threads, static_cast<char*>(target.mutable_data_ptr()));
  });
}

using Variants = std::map<std::string, std::function<double()>>;
using Samples = std::map<std::string, std::vector<double>>;

/// Every variant once in each round, in random order; the first round is not counted.
Samples interleaved(const Variants& variants, int rounds, const std::function<void()>& before) {
  Samples samples;
  std::vector<std::string> order;
  for (const auto& [name, call] : variants) order.push_back(name);
  std::mt19937 random(1);
  for (int round = 0; round <= rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    for (const std::string& name : order) {
      before();
      const double seconds = variants.at(name)();
      if (round > 0) samples[name].push_back(seconds * 1e6);
    }
  }
  return samples;
}

/// A case as bench_kernels and bench_model write it, with bars {variant, what it is held against}.
ordered_json describe(const std::string& name, std::size_t bytes, const Samples& samples,
                      const std::vector<std::array<std::string, 2>>& bars) {
  constexpr double kShare = 0.8;  // of the speed of a read
  ordered_json out = {{"name", name}, {"run_type", "iteration"}, {"bytes", bytes}};
  std::printf("%s, %.2f GB\n", name.c_str(), static_cast<double>(bytes) / 1e9);
  for (const auto& [variant, times] : samples) {
    const Summary summary = summarise(times);
    const std::string key = "us/" + variant + "/";
    out[key + "median"] = summary.median;
    out[key + "min"] = summary.min;
    out[key + "p10"] = summary.p10;
    out[key + "p90"] = summary.p90;
    std::printf("    %-10s %8.1f ms  %6.2f GB/s\n", variant.c_str(), summary.median / 1e3,
                static_cast<double>(bytes) / summary.median / 1e3);
  }
  for (const auto& [variant, read] : bars) {
    const Summary ratio = summarise(quotients(samples.at(read), samples.at(variant)));
    const std::string pair = read + "/" + variant;
    out["ratio/" + pair] = ratio.median;
    out["ratio_low/" + pair] = ratio.low;
    out["ratio_high/" + pair] = ratio.high;
    out["at_least/" + pair] = kShare;
    std::printf("    %s / %s %.3f [%.3f, %.3f], bar %.2f\n", read.c_str(), variant.c_str(),
                ratio.median, ratio.low, ratio.high, kShare);
  }
  const Summary again = summarise(quotients(samples.at("read"), samples.at("read_again")));
  out["aa_spread"] = std::max(std::abs(again.low - 1), std::abs(again.high - 1));
  return out;
}

ordered_json context(const Flags& flags) {
  std::array<char, 32> date{};
  const std::time_t now = std::time(nullptr);
  std::strftime(date.data(), date.size(), "%FT%T+00:00", std::gmtime(&now));
  std::array<double, 3> load{};
  getloadavg(load.data(), 3);
  ordered_json out = {{"date", date.data()},
                      {"cpu", cpu_field("model name")},
                      {"cpu_cores", std::to_string(std::thread::hardware_concurrency())},
                      {"device", flags.device},
                      {"threads", std::to_string(flags.threads)},
                      {"commit", flags.commit},
                      {"load_avg", load}};
  if (flags.device == "cuda") out["gpu"] = gpu_name();
  return out;
}

int run(const Flags& flags) {
  at::set_num_threads(flags.threads);
  const File file(flags.archive);
  Variants variants = {
      {"read", [&] { return seconds_of([&] { file.read(flags.threads, nullptr); }); }}};
  variants["read_again"] = variants["read"];
  const bool on_cpu = flags.device == "cpu";
  std::vector<std::array<std::string, 2>> warm_bars = {{"map", "read"}, {"copy", "read_new"}},
                                          cold_bars = {{"map", "read"}};
  if (on_cpu) {
    variants["map"] = [&] { return load_seconds(flags, "map"); };
    variants["copy"] = [&] { return load_seconds(flags, "copy"); };
    variants["read_new"] = [&] { return read_new_seconds(flags, file); };
  } else {
    variants["load"] = [&] { return load_seconds(flags, "map"); };
    warm_bars = cold_bars = {{"load", "read"}};
  }
  const auto nothing = [] {};
  const auto forget = [&] { file.forget(); };
  file.read(flags.threads, nullptr);
  ordered_json cases = ordered_json::array();
  const std::string name = "load/" + flags.device + "/";
  cases.push_back(describe(name + "page_cache", file.bytes(),
                           interleaved(variants, flags.rounds, nothing), warm_bars));
  variants.erase("read_new");
  cases.push_back(describe(name + "disk", file.bytes(), interleaved(variants, flags.rounds, forget),
                           cold_bars));
  if (!flags.out.empty())
    std::ofstream(flags.out)
        << ordered_json{{"context", context(flags)}, {"benchmarks", cases}}.dump(1) << "\n";
  return 0;
}

}  // namespace
}  // namespace libvar::bench

int main(int argc, char** argv) {
  libvar::bench::Flags flags;
  CLI::App app("How fast an archive is loaded, beside plain reads of its file");
  app.add_option("MODEL.pt", flags.archive)->required()->check(CLI::ExistingFile);
  app.add_option("--device", flags.device)->check(CLI::IsMember({"cpu", "cuda"}));
  app.add_option("--rounds", flags.rounds)->check(CLI::PositiveNumber);
  app.add_option("--threads", flags.threads)->check(CLI::PositiveNumber);
  app.add_option("--commit", flags.commit);
  app.add_option("--out", flags.out, "JSON, as the other benchmarks write it");
  CLI11_PARSE(app, argc, argv);
  try {
    return libvar::bench::run(flags);
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
