// Thousands of questions in one process: every answer out of a batch is the one that Session gives
// to its question alone, and memory doesn't grow. In half types tokens may part where the two
// largest logits are close (BatchSession); such answers are counted.
//
//   soak [--questions N] [--seed N] [--device cpu|cuda] [--dtype fp32|bf16|fp16]
//        [--fault leak|company]

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "libvar/batch_session.h"
#include "libvar/session.h"
#include "soak/memory.h"
#include "soak/requests.h"
#include "unit/model/golden_run.h"

namespace libvar::testing {
namespace {

/// Of the largest logit: the bound of the goldens.
constexpr double kLogitBound = 2e-5;
/// What BatchSession's description says of half types, in roundings of the largest logit.
constexpr double kLogitRoundings = 16, kGapRoundings = 8;
/// Of the heap's growth: a question that leaves anything behind leaves a block of at least 32
/// bytes; what was measured beside that, strings and tables of sizes that vary, was 14 kB.
constexpr std::int64_t kHeapBytes = 16 << 10, kHeapBytesPerQuestion = 16;
/// Of the growth of resident memory that is no file's; the allocator's gaps move it too.
constexpr std::int64_t kAnonymousBytes = 2 << 20;
/// Questions for one model at a time.
constexpr std::int64_t kRound = 12;

struct Flags {
  std::int64_t questions = 2000;
  std::uint32_t seed = 1;
  std::string device = "cpu";  ///< on a GPU memory is reported, not held to bounds: CUDA keeps some
  std::string dtype = "fp32";
  std::string fault = {};  ///< seeded to see that it is found
};

struct Counts {
  std::int64_t questions = 0, tokens = 0, prefixes = 0, differ = 0, by_images[3] = {0, 0, 0};
  std::int64_t changed = 0;  // answers in which VAR changed rows
  std::int64_t parted = 0;   // answers in half types whose tokens differ from some place on
  double logit_error = 0, gap = 0;
};

struct Bounds {
  double logits, gap;  ///< of the largest logit
};

Bounds bounds_of(const std::string& dtype) {
  if (dtype == "fp32") return {kLogitBound, 0};
  const double rounding = dtype == "bf16" ? 0x1p-8 : 0x1p-11;
  return {kLogitRoundings * rounding, kGapRoundings * rounding};
}

/// How an answer lies to the one of its question alone.
struct Comparison {
  std::string difference = {};  ///< what must not differ and does; empty: nothing
  double logit_error = 0;       ///< of the largest, as far as the tokens are equal
  bool parted = false;
  double gap = 0;  ///< where tokens part: of the two largest logits, of the largest
};

/// In float32: all that must be equal.
std::string difference(const Answer& found, const Answer& alone, double logit_error) {
  if (found.tokens != alone.tokens) return "tokens";
  if (found.text != alone.text) return "text";
  if (found.prompt_tokens != alone.prompt_tokens) return "prompt_tokens";
  if (found.visual_spans != alone.visual_spans) return "visual_spans";
  if (found.finish_reason != alone.finish_reason) return "finish_reason";
  if (found.var.visual_sinks != alone.var.visual_sinks) return "visual_sinks";
  if (found.var.selected_rows != alone.var.selected_rows) return "selected_rows";
  if (!(logit_error <= kLogitBound)) return "logits";
  return "";
}

Comparison compare_single(const Answer& found, const Answer& alone) {
  Comparison out;
  out.logit_error = relative_error(found.logits, alone.logits);
  out.difference = difference(found, alone, out.logit_error);
  return out;
}

/// In half types: equal tokens up to a place where two could be the next, and logits within the
/// bound up to there.
Comparison compare_half(const Answer& found, const Answer& alone, const Bounds& bounds) {
  Comparison out;
  const auto [here, there] = std::mismatch(found.tokens.begin(), found.tokens.end(),
                                           alone.tokens.begin(), alone.tokens.end());
  const auto same = here - found.tokens.begin();
  out.parted = here != found.tokens.end() || there != alone.tokens.end();
  // The row of the place where they part has the same tokens before it in both.
  const std::int64_t rows =
      std::min({found.logits.size(0), alone.logits.size(0), static_cast<std::int64_t>(same) + 1});
  out.logit_error =
      relative_error(found.logits.narrow(0, 0, rows), alone.logits.narrow(0, 0, rows));
  if (out.parted) {
    const at::Tensor row = alone.logits[same];
    const at::Tensor top = std::get<0>(row.topk(2));
    out.gap = ((top[0] - top[1]) / row.abs().max()).item<double>();
  }
  if (found.prompt_tokens != alone.prompt_tokens) {
    out.difference = "prompt_tokens";
  } else if (found.visual_spans != alone.visual_spans) {
    out.difference = "visual_spans";
  } else if (!(out.logit_error <= bounds.logits)) {
    out.difference = "logits";
  } else if (!(out.gap <= bounds.gap)) {
    out.difference = "tokens";
  }
  return out;
}

class Soak {
 public:
  explicit Soak(Flags flags)
      : flags_(std::move(flags)),
        bounds_(bounds_of(flags_.dtype)),
        maker_(flags_.seed, /*draws=*/flags_.dtype == "fp32"),
        models_(load_soak_models(flags_.device, flags_.dtype)) {
    for (const SoakModel& one : models_) {
      alone_.push_back(std::make_unique<Session>(one.model));
      kept_.push_back(std::make_unique<BatchSession>(one.model));
    }
  }

  /// @return whether all is well
  bool run() {
    warm_up();
    const Memory first = report("behind the warm-up");
    const std::int64_t part = std::max<std::int64_t>(flags_.questions / 10, 60);
    Memory last = first;
    for (std::int64_t next = part; counts_.questions < flags_.questions; next += part) {
      const std::int64_t end = std::min(next, flags_.questions);
      while (counts_.questions < end) round(std::min(kRound, end - counts_.questions));
      fixed();
      last = report("");
    }
    return summary(first, last);
  }

 private:
  /// Some questions of each model, so that every cache has its size and every page was touched.
  void warm_up() {
    for (std::size_t i = 0; i < 2 * models_.size(); ++i) round(kRound);
    fixed();
    counts_ = {};
  }

  /// The same questions in the sessions that stay, so that they hold the same whenever memory is
  /// measured.
  void fixed() {
    for (std::size_t i = 0; i < models_.size(); ++i)
      check(i, *kept_[i], RequestMaker::fixed(*models_[i].model));
  }

  /// Some questions for one model: in a session of their own, or in the one that stays.
  void round(std::int64_t count) {
    const std::size_t i = round_++ % models_.size();
    std::vector<Request> requests;
    for (; count > 0; --count) requests.push_back(maker_.request(*models_[i].model));
    if (round_ % 2 == 0) {
      check(i, *kept_[i], requests);
    } else {
      BatchSession session(models_[i].model, maker_.options());
      check(i, session, requests);
    }
    counts_.questions += static_cast<std::int64_t>(requests.size());
  }

  /// Answers each question alone and all together, and compares.
  void check(std::size_t model, BatchSession& session, const std::vector<Request>& requests) {
    std::vector<Answer> alone;
    for (const Request& request : requests) alone.push_back(alone_[model]->ask(request));
    std::vector<Request> together = requests;
    if (flags_.fault == "company") {  // an answer takes the settings of its neighbour
      for (std::size_t i = 1; i < together.size(); ++i) together[i].var.p = requests[i - 1].var.p;
    }
    session.ask(together, [&](std::size_t index, const Answer& found) {
      compare(model, requests[index], found, alone[index]);
      if (flags_.fault == "leak") {
        static std::vector<at::Tensor> kept;
        kept.push_back(at::empty({64}));
      }
      return true;
    });
  }

  void compare(std::size_t model, const Request& request, const Answer& found,
               const Answer& alone) {
    const Comparison compared =
        flags_.dtype == "fp32" ? compare_single(found, alone) : compare_half(found, alone, bounds_);
    counts_.logit_error = std::max(counts_.logit_error, compared.logit_error);
    counts_.gap = std::max(counts_.gap, compared.gap);
    counts_.parted += compared.parted ? 1 : 0;
    counts_.tokens += static_cast<std::int64_t>(found.tokens.size());
    counts_.prefixes += !request.images.empty() && found.timing.vision_ms == 0 ? 1 : 0;
    ++counts_.by_images[request.images.size()];
    const auto& rows = found.var.selected_rows;
    counts_.changed += std::any_of(rows.begin(), rows.end(), [](auto n) { return n > 0; }) ? 1 : 0;
    if (compared.difference.empty() || ++counts_.differ > 10) return;
    std::printf("FAILED: %s, question %lld: %s (logits off by %.3g, two largest apart by %.3g)\n",
                models_[model].name.c_str(), static_cast<long long>(counts_.questions),
                compared.difference.c_str(), compared.logit_error, compared.gap);
  }

  Memory report(const std::string& note) {
    const Memory memory = Memory::now();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin_;
    std::printf(
        "%6.0f s  %5lld questions  %6lld tokens  resident %8.3f MB, %8.3f of no file  heap %10.3f "
        "kB  %s\n",
        seconds.count(), static_cast<long long>(counts_.questions),
        static_cast<long long>(counts_.tokens), static_cast<double>(memory.resident) / 1e6,
        static_cast<double>(memory.anonymous) / 1e6, static_cast<double>(memory.heap) / 1e3,
        note.c_str());
    std::fflush(stdout);
    return memory;
  }

  bool summary(const Memory& first, const Memory& last) const {
    const std::int64_t resident = last.resident - first.resident,
                       anonymous = last.anonymous - first.anonymous, heap = last.heap - first.heap;
    const std::int64_t heap_bound = kHeapBytes + kHeapBytesPerQuestion * counts_.questions;
    std::printf(
        "%lld questions: %lld about no picture, %lld about one, %lld about two (fixed ones "
        "included); %lld prefixes taken over, VAR changed rows in %lld answers\n"
        "answers that differ from Session's: %lld; logits within %.2g of the largest (bound "
        "%.0e)\n"
        "tokens part in %lld answers, where the two largest logits are apart by at most %.2g of "
        "the "
        "largest (bound %.0e)\n"
        "resident memory %+.3f MB, %+.3f of no file (bound %.1f), heap %+.3f kB (bound %.1f)\n",
        static_cast<long long>(counts_.questions), static_cast<long long>(counts_.by_images[0]),
        static_cast<long long>(counts_.by_images[1]), static_cast<long long>(counts_.by_images[2]),
        static_cast<long long>(counts_.prefixes), static_cast<long long>(counts_.changed),
        static_cast<long long>(counts_.differ), counts_.logit_error, bounds_.logits,
        static_cast<long long>(counts_.parted), counts_.gap, bounds_.gap,
        static_cast<double>(resident) / 1e6, static_cast<double>(anonymous) / 1e6,
        kAnonymousBytes / 1e6, static_cast<double>(heap) / 1e3,
        static_cast<double>(heap_bound) / 1e3);
    bool well = counts_.differ == 0;
    const auto want = [&well](bool holds, const char* what) {
      if (!holds) std::printf("FAILED: %s\n", what);
      well = well && holds;
    };
    want(counts_.prefixes * 8 > counts_.questions, "too few prefixes were taken over");
    want(counts_.changed * 4 > counts_.questions, "VAR acted in too few answers");
    if (flags_.device != "cpu") return well;
    want(heap <= heap_bound, "the heap grows");
    want(anonymous <= kAnonymousBytes, "resident memory grows");
    return well;
  }

  Flags flags_;
  Bounds bounds_;
  RequestMaker maker_;
  std::vector<SoakModel> models_;
  std::vector<std::unique_ptr<Session>> alone_;
  std::vector<std::unique_ptr<BatchSession>> kept_;
  std::size_t round_ = 0;
  Counts counts_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

bool read(int argc, char** argv, Flags& flags) {
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) return false;
    if (std::strcmp(argv[i], "--questions") == 0) {
      flags.questions = std::atoll(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--seed") == 0) {
      flags.seed = static_cast<std::uint32_t>(std::atoll(argv[i + 1]));
    } else if (std::strcmp(argv[i], "--device") == 0) {
      flags.device = argv[i + 1];
    } else if (std::strcmp(argv[i], "--dtype") == 0) {
      flags.dtype = argv[i + 1];
      if (flags.dtype != "fp32" && flags.dtype != "bf16" && flags.dtype != "fp16") return false;
    } else if (std::strcmp(argv[i], "--fault") == 0) {
      flags.fault = argv[i + 1];
      if (flags.fault != "leak" && flags.fault != "company") return false;
    } else {
      return false;
    }
  }
  return flags.questions > 0;
}

}  // namespace
}  // namespace libvar::testing

int main(int argc, char** argv) {
  libvar::testing::Flags flags;
  if (!libvar::testing::read(argc, argv, flags)) {
    std::fprintf(stderr,
                 "usage: soak [--questions N] [--seed N] [--device cpu|cuda] "
                 "[--dtype fp32|bf16|fp16] [--fault leak|company]\n");
    return 2;
  }
  // LibTorch and its oneDNN each keep what they have made for the last 1,024 shapes of a
  // convolution or a product, and new lengths of prompts make new ones: growth that ends, but not
  // within this run.
  setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0", /*overwrite=*/1);
  setenv("LRU_CACHE_CAPACITY", "16", /*overwrite=*/1);
  try {
    return libvar::testing::Soak(flags).run() ? 0 : 1;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
