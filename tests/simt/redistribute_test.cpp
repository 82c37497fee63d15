// The redistribution kernel against the double-precision oracle, in every lane order.

#include <sys/mman.h>
#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/redistribute.cuh"
#include "element_types.h"
#include "lane_orders.h"
#include "libvar/numerics.h"
#include "reference/redistribute_oracle.h"

using libvar::HeadRule;
using libvar::RedistributionRule;
using libvar::TokenClass;
namespace reference = libvar::reference;

namespace {

enum class Sinks { kSome, kNone, kAllKeys, kOnlyText, kAllVisual };

struct Case {
  std::string name;
  int batch = 2;
  int num_heads = 2;
  int num_rows = 3;
  int num_keys = 40;
  Sinks sinks = Sinks::kSome;
  bool has_visual = true;
  bool has_row_mask = false;
  RedistributionRule rule = {};
};

/// Rows that sum to 1, with more on the sinks in some rows than in others.
template <typename T>
reference::RedistributeProblem make_problem(const Case& c, unsigned seed) {
  std::mt19937 random(seed);
  std::exponential_distribution<double> exponential;
  reference::RedistributeProblem in;
  in.batch = c.batch;
  in.num_heads = c.num_heads;
  in.num_rows = c.num_rows;
  in.num_keys = c.num_keys;
  in.rule = c.rule;
  in.sink_scores.assign(static_cast<std::size_t>(c.batch) * c.num_keys, 1.0f);
  in.visual_mask.assign(in.sink_scores.size(), 0);
  for (int b = 0; b < c.batch; ++b) {
    for (int j = 0; j < c.num_keys; ++j) {
      const std::size_t key = static_cast<std::size_t>(b) * c.num_keys + j;
      const bool visual = c.has_visual && j >= c.num_keys / 8 && j < c.num_keys - 2;
      in.visual_mask[key] = visual;
      const bool sink = (c.sinks == Sinks::kSome && (j == 0 || (visual && j % 9 == 4 + b))) ||
                        c.sinks == Sinks::kAllKeys || (c.sinks == Sinks::kOnlyText && j == 0) ||
                        (c.sinks == Sinks::kAllVisual && (j == 0 || visual));
      if (sink) in.sink_scores[key] = j % 2 == 0 ? 20.0f : 1e6f;
      if (!sink && j % 5 == 3) in.sink_scores[key] = j % 2 == 0 ? NAN : 19.999998f;
    }
  }
  const std::size_t num_rows = static_cast<std::size_t>(c.batch) * c.num_heads * c.num_rows;
  for (std::size_t row = 0; row < num_rows; ++row) {
    const std::size_t b = row / (static_cast<std::size_t>(c.num_heads) * c.num_rows);
    std::vector<double> probs(c.num_keys);
    double sum = 0.0;
    for (int j = 0; j < c.num_keys; ++j) {
      probs[j] =
          exponential(random) *
          (in.sink_scores[b * c.num_keys + j] >= 20.0f ? 1.0 + static_cast<double>(row % 5) : 1.0);
      sum += probs[j];
    }
    for (const double x : probs) in.probs.push_back(x / sum);
  }
  round_to<T>(in.probs);
  if (c.has_row_mask) {
    in.row_mask.emplace(static_cast<std::size_t>(c.batch) * c.num_rows);
    for (auto& may : *in.row_mask) may = random() % 2;
  }
  return in;
}

enum class Layout {
  kContiguous,
  kPadded,   ///< every row starts at a multiple of 16 bytes
  kStrided,  ///< heads inside rows, 5 elements between rows, nothing aligned on purpose
};

/// [B, H, Q, K] in memory.
template <typename T>
struct Probs {
  std::vector<T> memory;
  libvar::cuda::RowStrides strides;

  Probs(const reference::RedistributeProblem& in, Layout layout) {
    constexpr int kElements = libvar::cuda::kVectorSize<T>;
    const bool strided = layout == Layout::kStrided;
    const int row_elements = strided                     ? in.num_keys + 5
                             : layout == Layout::kPadded ? (in.num_keys / kElements + 2) * kElements
                                                         : in.num_keys;
    strides.head = strided ? row_elements : std::int64_t{in.num_rows} * row_elements;
    strides.row = strided ? std::int64_t{in.num_heads} * row_elements : row_elements;
    strides.batch = std::int64_t{in.num_heads} * in.num_rows * row_elements;
    memory = unwritten<T>(static_cast<std::size_t>(strides.batch) * in.batch);
  }

  /// Calls function(place in memory, place in [B, H, Q, K]).
  template <typename Function>
  void for_each(const reference::RedistributeProblem& in, const Function& function) const {
    std::size_t index = 0;
    for (int b = 0; b < in.batch; ++b) {
      for (int h = 0; h < in.num_heads; ++h) {
        for (int i = 0; i < in.num_rows; ++i) {
          for (int j = 0; j < in.num_keys; ++j)
            function(static_cast<std::size_t>(strides.offset(b, h, i) + j), index++);
        }
      }
    }
  }
};

template <typename T>
libvar::cuda::RedistributeArguments<T> arguments(const reference::RedistributeProblem& in) {
  libvar::cuda::RedistributeArguments<T> args = {};
  args.sink_scores = in.sink_scores.data();
  args.visual_mask = reinterpret_cast<const bool*>(in.visual_mask.data());
  args.row_mask = in.row_mask ? reinterpret_cast<const bool*>(in.row_mask->data()) : nullptr;
  args.sink_scores_stride = {in.num_keys, 1};
  args.visual_mask_stride = {in.num_keys, 1};
  args.row_mask_stride = {in.num_rows, 1};
  args.batch = in.batch;
  args.num_heads = in.num_heads;
  args.num_rows = in.num_rows;
  args.num_keys = in.num_keys;
  args.rule = in.rule;
  return args;
}

template <typename T>
std::vector<T> run_kernel(const reference::RedistributeProblem& in, Layout layout, bool in_place) {
  Probs<T> probs(in, layout);
  probs.for_each(in, [&](std::size_t place, std::size_t index) {
    probs.memory[place] = to_element<T>(in.probs[index]);
  });
  const Probs<T> before = probs;
  Probs<T> fresh(in, layout == Layout::kPadded ? layout : Layout::kContiguous);
  Probs<T>& out = in_place ? probs : fresh;
  auto args = arguments<T>(in);
  args.probs = probs.memory.data();
  args.out = out.memory.data();
  args.probs_stride = probs.strides;
  args.out_stride = out.strides;
  REQUIRE(libvar::cuda::launch_redistribute(args, nullptr) == cudaSuccess);
  std::vector<T> result(in.probs.size());
  std::vector<bool> inside(out.memory.size());
  out.for_each(in, [&](std::size_t place, std::size_t index) {
    result[index] = out.memory[place];
    inside[place] = true;
  });
  // Nothing between the rows was written, and the functional form left its input alone.
  const T untouched = unwritten<T>(1)[0];
  std::size_t written_between = 0;
  for (std::size_t i = 0; i < inside.size(); ++i) {
    if (!inside[i] && std::memcmp(&out.memory[i], &untouched, sizeof(T)) != 0) ++written_between;
  }
  REQUIRE(written_between == 0);
  if (!in_place) REQUIRE(same_bits(probs.memory, before.memory));
  return result;
}

/// The rows that the kernel changed; under p > 0 these are the rows that it selected, unless they
/// hold no source mass.
template <typename T>
std::vector<std::uint8_t> changed_rows(const reference::RedistributeProblem& in,
                                       const std::vector<T>& got) {
  std::vector<std::uint8_t> changed(in.probs.size() / in.num_keys);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const T before = to_element<T>(in.probs[i]);
    if (std::memcmp(&before, &got[i], sizeof(T)) != 0) changed[i / in.num_keys] = 1;
  }
  return changed;
}

struct Tally {
  std::size_t rows = 0;
  std::size_t selected = 0;
  std::size_t flips = 0;
};

template <typename T>
void compare(const reference::RedistributeProblem& in, const std::vector<T>& got, Tally& tally) {
  const auto own = reference::redistribute(in);
  const auto selection = changed_rows(in, got);
  const auto given = reference::redistribute(in, &selection);
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double floor = std::is_same_v<T, float> ? 0.0 : rounding_of<T>(given.probs[i]);
    if (!(std::fabs(to_double(got[i]) - given.probs[i]) <= floor + libvar::kRedistributeBound))
      ++wrong;
  }
  CHECK(wrong == 0);
  for (std::size_t row = 0; row < selection.size(); ++row) {
    ++tally.rows;
    tally.selected += selection[row];
    if (selection[row] == own.selected[row]) continue;
    // A selected row without source mass does not change.
    bool changes = false;
    for (int j = 0; j < in.num_keys; ++j) {
      const std::size_t at = row * static_cast<std::size_t>(in.num_keys) + j;
      changes = changes || std::fabs(own.probs[at] - in.probs[at]) > rounding_of<T>(in.probs[at]);
    }
    if (own.selected[row] != 0 && !changes) continue;
    ++tally.flips;
    CHECK(own.margin[row] < 1e-5);
  }
  for (std::size_t row = 0; row < selection.size(); ++row) {
    double before = 0.0;
    double after = 0.0;
    double drift = 1e-5;
    for (int j = 0; j < in.num_keys; ++j) {
      const std::size_t at = row * static_cast<std::size_t>(in.num_keys) + j;
      before += in.probs[at];
      after += to_double(got[at]);
      drift += std::is_same_v<T, float> ? 0.0 : rounding_of<T>(to_double(got[at]));
    }
    if (!(std::fabs(before - after) <= drift))
      FAIL_CHECK("row " << row << " sums to " << after << ", before " << before);
  }
}

/// Every layout, functional and in place: the same bits everywhere. One layout in every lane order.
template <typename T>
Tally check_case(const Case& c) {
  INFO(c.name << ", " << ElementType<T>::kName);
  const auto in = make_problem<T>(c, 7 * static_cast<unsigned>(c.num_keys) + 1);
  Tally tally;
  const auto first = run_kernel<T>(in, Layout::kContiguous, false);
  compare(in, first, tally);
  CHECK(same_bits(run_kernel<T>(in, Layout::kContiguous, true), first));
  CHECK(same_bits(run_kernel<T>(in, Layout::kPadded, true), first));
  CHECK(same_bits(run_kernel<T>(in, Layout::kStrided, false), first));
  for_all_lane_orders([&] {
    CHECK(same_bits(run_kernel<T>(in, Layout::kPadded, false), first));
    CHECK(same_bits(run_kernel<T>(in, Layout::kStrided, true), first));
  });
  return tally;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int keys : {1, 2, 31, 32, 33, 97, 127, 128, 129, 576, 640, 1023}) {
    Case c{"keys " + std::to_string(keys)};
    c.num_keys = keys;
    c.rule.rho = keys % 2 == 0 ? 0.8f : 0.6f;
    cases.push_back(c);
  }
  const auto add = [&](const std::string& name, auto change) {
    Case c{name};
    c.num_keys = 103;
    c.rule.rho = 0.75f;
    change(c);
    cases.push_back(c);
  };
  add("row mask", [](Case& c) { c.has_row_mask = true, c.num_rows = 9; });
  add("no sink", [](Case& c) { c.sinks = Sinks::kNone; });
  add("all sinks", [](Case& c) { c.sinks = Sinks::kAllKeys; });
  add("all visual keys are sinks", [](Case& c) { c.sinks = Sinks::kAllVisual; });
  add("only text sinks", [](Case& c) { c.sinks = Sinks::kOnlyText; });
  add("no visual key", [](Case& c) { c.has_visual = false; });
  add("ratio epsilon", [](Case& c) { c.rule.ratio_epsilon = 0.05f, c.rule.rho = 0.9f; });
  add("least visual mass", [](Case& c) { c.rule.min_visual_mass = 0.86f, c.rule.rho = 0.1f; });
  add("infinite tau", [](Case& c) { c.rule.tau = INFINITY; });
  add("p = 1", [](Case& c) { c.rule.p = 1.0f; });
  add("off", [](Case& c) { c.rule.head_rule = HeadRule::kNone; });
  add("all heads, text", [](Case& c) {
    c.rule.head_rule = HeadRule::kAll;
    c.rule.targets = libvar::class_set(TokenClass::kTextNonSink);
  });
  add("all heads, both, from visual sinks", [](Case& c) {
    c.rule.head_rule = HeadRule::kAll;
    c.rule.targets = libvar::class_set(TokenClass::kTextNonSink, TokenClass::kVisualNonSink);
    c.rule.sources = libvar::class_set(TokenClass::kVisualSink);
  });
  add("ratio, both", [](Case& c) {
    c.rule.targets = libvar::class_set(TokenClass::kTextNonSink, TokenClass::kVisualNonSink);
  });
  return cases;
}

}  // namespace

TEMPLATE_TEST_CASE("redistribute agrees with the oracle", "[simt][redistribute]", float, __half,
                   __nv_bfloat16) {
  Tally total;
  for (const Case& c : all_cases()) {
    const Tally tally = check_case<TestType>(c);
    total.rows += tally.rows;
    total.selected += tally.selected;
    total.flips += tally.flips;
  }
  INFO(total.selected << " of " << total.rows << " rows selected, " << total.flips << " flips");
  CHECK(total.flips <= total.rows / 100);
  CHECK(total.selected > total.rows / 10);
  CHECK(total.selected < total.rows * 9 / 10);
}

TEST_CASE("redistribute of a tiny case computed by hand", "[simt][redistribute]") {
  reference::RedistributeProblem in;
  in.num_keys = 4;
  in.probs = {0.5, 0.125, 0.25, 0.125};
  in.sink_scores = {20.0f, 25.0f, 3.0f, 1.0f};
  in.visual_mask = {0, 1, 1, 0};
  in.rule.rho = 0.5f;
  in.rule.p = 0.5f;
  CHECK(run_kernel<float>(in, Layout::kContiguous, false) ==
        std::vector<float>{0.25f, 0.0625f, 0.5625f, 0.125f});
  in.rule.rho = 0.7f;
  CHECK(run_kernel<float>(in, Layout::kContiguous, false) ==
        std::vector<float>{0.5f, 0.125f, 0.25f, 0.125f});
}

// The number of 16-byte vectors in a row chooses its kernel: see launch_redistribute.
TEMPLATE_TEST_CASE("redistribute agrees with the oracle at the borders of its kernels",
                   "[simt][redistribute]", float, __half, __nv_bfloat16) {
  Tally total;
  for (const int vectors : {32 * 4, 32 * 8, 128 * 4, 256 * 4, 256 * 8}) {
    for (const int beyond : {-1, 0, 1}) {
      Case c{"keys of " + std::to_string(vectors) + " vectors and " + std::to_string(beyond)};
      c.num_keys = vectors * libvar::cuda::kVectorSize<TestType> + beyond;
      c.num_heads = 3;                         // no divisor of the number of blocks
      c.num_rows = vectors <= 32 * 8 ? 5 : 2;  // every block gets several rows
      c.has_row_mask = beyond < 0;
      c.rule.rho = 0.8f;
      const Tally tally = check_case<TestType>(c);
      total.selected += tally.selected;
      total.rows += tally.rows;
    }
  }
  CHECK(total.selected > total.rows / 10);
  CHECK(total.selected < total.rows * 9 / 10);
}

TEMPLATE_TEST_CASE("long rows are redistributed whatever the shared memory holds of them",
                   "[simt][redistribute]", float, __nv_bfloat16) {
  using Row = libvar::cuda::LongRow<TestType>;
  constexpr std::size_t kRoom =
      libvar::cuda::kMostSharedBytes - sizeof(libvar::cuda::RedistributeShared);
  constexpr int kBytesOfKey = static_cast<int>(sizeof(TestType));
  for (const int keys : {256 * 11 * 16 / kBytesOfKey + 37, 98304 / kBytesOfKey + 37, 800037}) {
    const bool keeps_classes = Row::class_bytes(keys) <= kRoom;
    const bool keeps_row = Row::class_bytes(keys) + Row::row_bytes(keys) <= kRoom;
    Case c{std::to_string(keys) + (keeps_classes ? ", classes kept" : "") +
           (keeps_row ? ", row kept" : "")};
    CHECK(keeps_classes == (keys != 800037));
    CHECK(keeps_row == (keys < 98304 / kBytesOfKey));
    INFO(c.name);
    c.num_heads = 1;
    c.num_rows = keeps_classes ? 3 : 1;
    c.num_keys = keys;
    c.has_row_mask = keeps_classes;
    c.rule.rho = 0.5f;
    auto in = make_problem<TestType>(c, 5);
    if (c.has_row_mask) in.row_mask = std::vector<std::uint8_t>{1, 0, 1, 1, 1, 0};
    Tally tally;
    const auto first = run_kernel<TestType>(in, Layout::kContiguous, false);
    compare(in, first, tally);
    CHECK(tally.selected == (c.has_row_mask ? 4 : 2));
    CHECK(same_bits(run_kernel<TestType>(in, Layout::kPadded, true), first));
    simt::set_schedule({simt::LaneOrder::kReverse, 1});
    CHECK(same_bits(run_kernel<TestType>(in, Layout::kStrided, false), first));
    simt::set_schedule({});
  }
}

TEST_CASE("redistribute takes scores and masks of any stride", "[simt][redistribute]") {
  Case c{"token strides"};
  c.num_keys = 200;
  c.has_row_mask = true;
  c.rule.rho = 0.7f;
  const auto in = make_problem<__half>(c, 21);
  const auto want = run_kernel<__half>(in, Layout::kContiguous, false);
  // Transposed: the batch is the inner dimension, and nothing else may be read.
  std::vector<float> scores(in.sink_scores.size());
  std::vector<std::uint8_t> visual(scores.size());
  std::vector<std::uint8_t> rows(in.row_mask->size());
  for (int b = 0; b < 2; ++b) {
    for (int j = 0; j < 200; ++j) {
      scores[static_cast<std::size_t>(2 * j + b)] =
          in.sink_scores[static_cast<std::size_t>(200 * b + j)];
      visual[static_cast<std::size_t>(2 * j + b)] =
          in.visual_mask[static_cast<std::size_t>(200 * b + j)];
    }
    for (int i = 0; i < 3; ++i)
      rows[static_cast<std::size_t>(2 * i + b)] =
          (*in.row_mask)[static_cast<std::size_t>(3 * b + i)];
  }
  Probs<__half> probs(in, Layout::kContiguous);
  for (std::size_t i = 0; i < in.probs.size(); ++i)
    probs.memory[i] = to_element<__half>(in.probs[i]);
  auto out = unwritten<__half>(in.probs.size());
  auto args = arguments<__half>(in);
  args.probs = probs.memory.data();
  args.out = out.data();
  args.probs_stride = args.out_stride = probs.strides;
  args.sink_scores = scores.data();
  args.visual_mask = reinterpret_cast<const bool*>(visual.data());
  args.row_mask = reinterpret_cast<const bool*>(rows.data());
  args.sink_scores_stride = args.visual_mask_stride = args.row_mask_stride = {1, 2};
  REQUIRE(libvar::cuda::launch_redistribute(args, nullptr) == cudaSuccess);
  CHECK(same_bits(out, want));
}

TEMPLATE_TEST_CASE(
    "in place only the rows that may be selected are read, and only the selected "
    "written",
    "[simt][redistribute]", float, __nv_bfloat16) {
  // A page for each row: those that the kernel has no business with can't be touched. A row of one
  // warp, and a long one.
  for (const std::size_t row_bytes : {4096u, 65536u}) {
    Case c{"pages"};
    c.num_keys = static_cast<int>(row_bytes / sizeof(TestType));
    c.num_rows = 6;
    c.rule.rho = 0.8f;
    auto in = make_problem<TestType>(c, 3);
    in.row_mask = std::vector<std::uint8_t>{0, 0, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1};
    const auto want = run_kernel<TestType>(in, Layout::kContiguous, false);
    const auto selection = changed_rows(in, want);
    const std::size_t num_bytes = row_bytes * selection.size();
    void* memory =
        mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    auto* probs = static_cast<TestType*>(memory);
    for (std::size_t i = 0; i < in.probs.size(); ++i) probs[i] = to_element<TestType>(in.probs[i]);
    int writable = 0;
    for (std::size_t row = 0; row < selection.size(); ++row) {
      const bool may = (*in.row_mask)[row / 12 * 6 + row % 6] != 0;
      if (selection[row] != 0) ++writable;
      REQUIRE(mprotect(static_cast<char*>(memory) + row * row_bytes, row_bytes,
                       selection[row] != 0 ? PROT_READ | PROT_WRITE
                       : may               ? PROT_READ
                                           : PROT_NONE) == 0);
    }
    CHECK(writable > 2);
    CHECK(writable < 16);
    auto args = arguments<TestType>(in);
    args.probs = args.out = probs;
    args.probs_stride = args.out_stride = {12 * c.num_keys, 6 * c.num_keys, c.num_keys};
    REQUIRE(libvar::cuda::launch_redistribute(args, nullptr) == cudaSuccess);
    REQUIRE(mprotect(memory, num_bytes, PROT_READ) == 0);
    CHECK(std::memcmp(want.data(), memory, num_bytes) == 0);
    munmap(memory, num_bytes);
  }
}

TEST_CASE("redistribute keeps unselected rows bit for bit, NaN included", "[simt][redistribute]") {
  // The bits of signalling and negative NaN, of minus zero and of the least number survive in rows
  // that are only copied.
  Case c{"bits"};
  c.batch = 1;
  c.num_heads = 1;
  c.num_rows = 3;
  c.num_keys = 40;
  c.has_row_mask = true;
  c.rule.rho = 0.5f;
  auto in = make_problem<__half>(c, 9);
  in.row_mask = std::vector<std::uint8_t>{0, 1, 1};
  in.probs[41] = NAN;  // row 1: its masses are NaN
  in.probs[3] = NAN;
  in.probs[4] = -0.0;
  for_all_lane_orders([&] {
    for (const bool in_place : {false, true}) {
      const auto got =
          run_kernel<__half>(in, in_place ? Layout::kContiguous : Layout::kStrided, in_place);
      for (std::size_t i = 0; i < 40; ++i)
        CHECK(got[i].bits == to_element<__half>(in.probs[i]).bits);
      CHECK(changed_rows(in, got) == std::vector<std::uint8_t>{0, changed_rows(in, got)[1], 1});
      for (std::size_t i = 80; i < 120; ++i) CHECK(!std::isnan(to_double(got[i])));
    }
  });
}

TEST_CASE("redistribute with p = 0 changes no bit", "[simt][redistribute]") {
  Case c{"p = 0"};
  c.num_keys = 100;
  c.rule.rho = 0.2f;
  c.rule.p = 0.0f;
  const auto in = make_problem<__nv_bfloat16>(c, 13);
  const auto own = reference::redistribute(in);
  CHECK(std::count(own.selected.begin(), own.selected.end(), 1) > 10);
  const auto changed = changed_rows(in, run_kernel<__nv_bfloat16>(in, Layout::kContiguous, false));
  CHECK(std::count(changed.begin(), changed.end(), 1) == 0);
}

TEST_CASE("redistribute without keys or rows", "[simt][redistribute]") {
  Case c{"empty"};
  c.num_rows = 0;
  CHECK(run_kernel<float>(make_problem<float>(c, 1), Layout::kContiguous, false).empty());
}
