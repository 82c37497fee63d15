// The attention kernel against the double-precision oracle, in every lane order.

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention_problem.h"
#include "cuda/attention.cuh"
#include "element_types.h"
#include "lane_orders.h"
#include "libvar/numerics.h"
#include "reference/attention_oracle.h"

using libvar::ClassSet;
using libvar::HeadRule;
using libvar::kNumTokenClasses;
using libvar::RedistributionRule;
using libvar::TokenClass;
namespace reference = libvar::reference;

namespace {

template <typename T>
struct KernelResult {
  std::vector<T> out;
  std::vector<std::uint8_t> selected;
  std::vector<float> class_mass;
};

/// Memory of a [batch, head, row, head_dim] tensor, laid out as (batch, row, head, head_dim) with
/// `padding` elements after each row when `transposed`, else contiguous.
template <typename T>
struct Layout {
  std::vector<T> memory;
  libvar::cuda::RowStrides strides;

  Layout(const std::vector<double>& values, int batch, int heads, int rows, int head_dim,
         bool transposed) {
    const int row_elements = transposed ? head_dim + 3 : head_dim;
    strides.head = transposed ? row_elements : std::int64_t{rows} * head_dim;
    strides.row = transposed ? std::int64_t{heads} * row_elements : head_dim;
    strides.batch = std::int64_t{heads} * rows * row_elements;
    memory = unwritten<T>(static_cast<std::size_t>(strides.batch) * batch);
    std::size_t index = 0;
    for (int b = 0; b < batch; ++b) {
      for (int h = 0; h < heads; ++h) {
        for (int i = 0; i < rows; ++i) {
          for (int d = 0; d < head_dim; ++d) {
            memory[static_cast<std::size_t>(strides.offset(b, h, i) + d)] =
                to_element<T>(values[index++]);
          }
        }
      }
    }
  }
};

template <typename T>
KernelResult<T> run_kernel(const reference::AttentionProblem& in, bool transposed,
                           bool traced = true, const std::vector<int>* raw_lengths = nullptr) {
  const Layout<T> query(in.query, in.batch, in.num_heads, in.num_rows, in.head_dim, transposed);
  const Layout<T> key(in.key, in.batch, in.num_kv_heads, in.num_keys, in.head_dim, transposed);
  const Layout<T> value(in.value, in.batch, in.num_kv_heads, in.num_keys, in.head_dim, transposed);
  const std::size_t num_results = static_cast<std::size_t>(in.batch) * in.num_heads * in.num_rows;
  KernelResult<T> result;
  result.out = unwritten<T>(num_results * in.head_dim);
  result.selected.assign(num_results, 7);
  result.class_mass.assign(num_results * kNumTokenClasses, NAN);
  libvar::cuda::AttentionArguments<T> args = {};
  args.query = query.memory.data();
  args.key = key.memory.data();
  args.value = value.memory.data();
  args.sink_scores = in.sink_scores.data();
  args.visual_mask = reinterpret_cast<const bool*>(in.visual_mask.data());
  args.row_mask = in.row_mask ? reinterpret_cast<const bool*>(in.row_mask->data()) : nullptr;
  args.kv_lengths = raw_lengths     ? raw_lengths->data()
                    : in.kv_lengths ? in.kv_lengths->data()
                                    : nullptr;
  args.params = in.params ? in.params->data() : nullptr;
  args.out = result.out.data();
  args.selected = traced ? reinterpret_cast<bool*>(result.selected.data()) : nullptr;
  args.class_mass = traced ? result.class_mass.data() : nullptr;
  args.query_stride = query.strides;
  args.key_stride = key.strides;
  args.value_stride = value.strides;
  args.sink_scores_stride = {in.num_keys, 1};
  args.visual_mask_stride = {in.num_keys, 1};
  args.row_mask_stride = {in.num_rows, 1};
  args.batch = in.batch;
  args.num_heads = in.num_heads;
  args.num_kv_heads = in.num_kv_heads;
  args.num_rows = in.num_rows;
  args.num_keys = in.num_keys;
  args.head_dim = in.head_dim;
  args.scale = static_cast<float>(in.scale);
  args.rule = in.rule;
  REQUIRE(libvar::cuda::launch_attention(args, nullptr) == cudaSuccess);
  return result;
}

template <typename T>
reference::AttentionProblem rounded_to(reference::AttentionProblem in) {
  round_to<T>(in.query);
  round_to<T>(in.key);
  round_to<T>(in.value);
  in.scale = static_cast<float>(in.scale);
  return in;
}

struct Tally {
  std::size_t rows = 0;
  std::size_t selected = 0;
  std::size_t flips = 0;
};

/// Compares with the oracle under the kernel's own selection; the selections may differ only where
/// the oracle's margin is within rounding.
template <typename T>
void compare(const reference::AttentionProblem& in, const KernelResult<T>& got, Tally& tally) {
  const auto own = reference::attention(in);
  const auto given = reference::attention(in, &got.selected);
  double largest = 0.0;
  for (int b = 0; b < in.batch; ++b) {
    for (int h = 0; h < in.num_kv_heads; ++h) {
      for (int j = 0; j < (in.kv_lengths ? (*in.kv_lengths)[b] : in.num_keys); ++j) {
        for (int d = 0; d < in.head_dim; ++d) {
          const auto at = ((static_cast<std::size_t>(b) * in.num_kv_heads + h) * in.num_keys + j) *
                              in.head_dim +
                          d;
          largest = std::fmax(largest, std::fabs(in.value[at]));
        }
      }
    }
  }
  std::size_t wrong = 0;
  double worst = 0.0;
  for (std::size_t i = 0; i < got.out.size(); ++i) {
    const double error = std::fabs(to_double(got.out[i]) - given.out[i]);
    const double floor = std::is_same_v<T, float> ? 0.0 : rounding_of<T>(given.out[i]);
    if (!(error <= floor + libvar::kAttentionBound * largest)) ++wrong;
    worst = std::fmax(worst, error);
  }
  INFO("largest error " << worst << ", largest value " << largest);
  CHECK(wrong == 0);
  std::size_t wrong_masses = 0;
  for (std::size_t i = 0; i < got.class_mass.size(); ++i) {
    if (!(std::fabs(got.class_mass[i] - given.class_mass[i]) <= 1e-5)) ++wrong_masses;
  }
  CHECK(wrong_masses == 0);
  for (std::size_t i = 0; i < got.selected.size(); ++i) {
    REQUIRE(got.selected[i] <= 1);
    ++tally.rows;
    tally.selected += got.selected[i];
    if (got.selected[i] == own.selected[i]) continue;
    ++tally.flips;
    CHECK(own.margin[i] < 1e-5);
  }
}

template <typename T>
Tally check_case(const Case& c) {
  INFO(c.name << ", " << ElementType<T>::kName);
  const auto in = rounded_to<T>(make_problem(c, 31 * static_cast<unsigned>(c.num_keys) + 5));
  Tally tally;
  std::vector<T> first;
  for (const bool transposed : {false, true}) {
    for_all_lane_orders([&] {
      const auto got = run_kernel<T>(in, transposed);
      if (first.empty()) {
        first = got.out;
        compare(in, got, tally);
      }
      CHECK(same_bits(got.out, first));
    });
  }
  return tally;
}

RedistributionRule rule_with(double rho, double p, double min_visual_mass) {
  RedistributionRule rule;
  rule.rho = static_cast<float>(rho);
  rule.p = static_cast<float>(p);
  rule.min_visual_mass = static_cast<float>(min_visual_mass);
  return rule;
}

constexpr ClassSet kText = libvar::class_set(TokenClass::kTextNonSink);
constexpr ClassSet kVisualAndText =
    libvar::class_set(TokenClass::kVisualNonSink, TokenClass::kTextNonSink);

RedistributionRule general_rule(HeadRule head_rule, ClassSet targets) {
  RedistributionRule rule = rule_with(0.6, 0.7, 0.1);
  rule.head_rule = head_rule;
  rule.targets = targets;
  return rule;
}

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int keys : {1, 2, 31, 32, 33, 64, 103}) {
    Case c{"keys " + std::to_string(keys)};
    c.num_keys = keys;
    c.num_rows = std::min(keys, 6);
    cases.push_back(c);
  }
  const auto add = [&](const std::string& name, auto change) {
    Case c{name};
    c.rule = rule_with(0.6, 0.6, 0.2);
    change(c);
    cases.push_back(c);
  };
  for (const int head_dim : {1, 31, 32, 33, 80, 96, 128, 200, 256}) {
    add("head size " + std::to_string(head_dim), [&](Case& c) { c.head_dim = head_dim; });
  }
  add("grouped heads",
      [](Case& c) { c.num_heads = 6, c.num_kv_heads = 2, c.num_keys = 103, c.num_rows = 11; });
  add("one key head", [](Case& c) { c.num_heads = 4, c.num_kv_heads = 1, c.num_rows = 3; });
  add("decode", [](Case& c) { c.num_heads = 4, c.num_rows = 1, c.num_keys = 103, c.batch = 2; });
  add("every row", [](Case& c) { c.num_rows = c.num_keys = 67; });
  add("rows before the first key", [](Case& c) { c.num_rows = 12, c.num_keys = 7; });
  add("lengths",
      [](Case& c) { c.batch = 3, c.has_lengths = true, c.num_keys = 70, c.num_rows = 9; });
  add("lengths below the rows",
      [](Case& c) { c.batch = 4, c.has_lengths = true, c.num_keys = 25, c.num_rows = 9; });
  add("row mask", [](Case& c) { c.has_row_mask = true, c.num_rows = 17, c.batch = 2; });
  add("params", [](Case& c) { c.batch = 4, c.has_params = true, c.num_keys = 90, c.num_rows = 7; });
  add("params, lengths, row mask, groups", [](Case& c) {
    c.batch = 3, c.has_params = c.has_lengths = c.has_row_mask = true;
    c.num_heads = 6, c.num_kv_heads = 3, c.num_keys = 101, c.num_rows = 10,
    c.visual = Visual::kTwoSpans;
  });
  add("no sink", [](Case& c) { c.sinks = Sinks::kNone; });
  add("all sinks", [](Case& c) { c.sinks = Sinks::kAllKeys; });
  add("all visual keys are sinks", [](Case& c) { c.sinks = Sinks::kAllVisual; });
  add("only text sinks", [](Case& c) { c.sinks = Sinks::kOnlyText; });
  add("sink after the rows",
      [](Case& c) { c.sinks = Sinks::kAfterRows, c.rule.head_rule = HeadRule::kAll; });
  add("no visual key", [](Case& c) { c.visual = Visual::kNone; });
  add("two images",
      [](Case& c) { c.visual = Visual::kTwoSpans, c.num_keys = 100, c.num_rows = 20; });
  add("ratio epsilon", [](Case& c) {
    c.rule.ratio_epsilon = 0.05f, c.rule.rho = 0.9f, c.num_keys = 100, c.num_rows = 20;
  });
  add("least visual mass",
      [](Case& c) { c.rule = rule_with(0.1, 0.6, 0.62), c.num_keys = 100, c.num_rows = 20; });
  add("infinite tau", [](Case& c) { c.rule.tau = INFINITY; });
  add("p = 1", [](Case& c) { c.rule.p = 1.0f; });
  add("all heads, text",
      [](Case& c) { c.rule = general_rule(HeadRule::kAll, kText), c.num_rows = 20; });
  add("all heads, both",
      [](Case& c) { c.rule = general_rule(HeadRule::kAll, kVisualAndText), c.num_rows = 20; });
  add("ratio, text",
      [](Case& c) { c.rule = general_rule(HeadRule::kRatio, kText), c.num_rows = 20; });
  add("sources visual only", [](Case& c) {
    c.rule = general_rule(HeadRule::kAll, kVisualAndText);
    c.rule.sources = libvar::class_set(TokenClass::kVisualSink);
  });
  add("VAR off", [](Case& c) { c.rule.head_rule = HeadRule::kNone; });
  add("LLaVA-1.5, 576 visual tokens", [](Case& c) {
    c.num_keys = 640, c.num_rows = 9, c.num_heads = 3, c.num_kv_heads = 3, c.head_dim = 128;
  });
  return cases;
}

}  // namespace

TEMPLATE_TEST_CASE("attention agrees with the oracle", "[simt][attention]", float, __half,
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
  // Both outcomes must be common, or the sweep shows nothing.
  CHECK(total.selected > total.rows / 10);
  CHECK(total.selected < total.rows * 9 / 10);
}

TEST_CASE("attention of a tiny case computed by hand", "[simt][attention]") {
  // Scores 0: equal shares of 1/4 for a text sink, a visual sink, a visual token and the row
  // itself. p = 0.5 moves a quarter of all: the visual token has 1/2, the sinks 1/8 each.
  reference::AttentionProblem in;
  in.num_keys = 4;
  in.query = {0.0};
  in.key = {1.0, 2.0, 3.0, 4.0};
  in.value = {8.0, 80.0, 800.0, 8000.0};
  in.sink_scores = {20.0f, 25.0f, 3.0f, 1.0f};
  in.visual_mask = {0, 1, 1, 0};
  in.rule = rule_with(0.5, 0.5, 0.5);
  const auto got = run_kernel<float>(in, false);
  CHECK(got.out[0] == Approx(1.0 + 10.0 + 400.0 + 2000.0));
  CHECK(got.selected[0] == 1);
  CHECK(got.class_mass == std::vector<float>{0.25f, 0.25f, 0.25f, 0.25f});
  in.rule = rule_with(0.51, 0.5, 0.5);
  const auto plain = run_kernel<float>(in, false);
  CHECK(plain.out[0] == Approx(2.0 + 20.0 + 200.0 + 2000.0));
  CHECK(plain.selected[0] == 0);
}

TEMPLATE_TEST_CASE("attention with p = 0 is attention without redistribution, bit for bit",
                   "[simt][attention]", float, __half, __nv_bfloat16) {
  Case c{"p = 0"};
  c.num_rows = 30;
  c.num_keys = 90;
  c.rule = rule_with(0.3, 0.0, 0.1);
  auto in = rounded_to<TestType>(make_problem(c, 3));
  const auto zero = run_kernel<TestType>(in, false);
  CHECK(std::count(zero.selected.begin(), zero.selected.end(), 1) > 10);
  in.rule.head_rule = HeadRule::kNone;
  const auto off = run_kernel<TestType>(in, false);
  CHECK(std::count(off.selected.begin(), off.selected.end(), 1) == 0);
  CHECK(same_bits(zero.out, off.out));
  in.rule = rule_with(0.3, 0.6, 0.1);
  const auto on = run_kernel<TestType>(in, false);
  for (std::size_t row = 0; row < on.selected.size(); ++row) {
    const bool same = std::memcmp(&on.out[row * c.head_dim], &off.out[row * c.head_dim],
                                  sizeof(TestType) * static_cast<std::size_t>(c.head_dim)) == 0;
    CHECK(same == (on.selected[row] == 0));
  }
}

TEST_CASE("a row's bits depend on nothing but the keys it sees", "[simt][attention]") {
  Case c{"independence"};
  c.batch = 3;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.num_rows = 21;
  c.num_keys = 110;
  c.has_lengths = true;
  c.has_params = true;
  const auto in = rounded_to<float>(make_problem(c, 17));
  const auto whole = run_kernel<float>(in, false);
  CHECK(std::count(whole.selected.begin(), whole.selected.end(), 1) > 20);
  for (int b = 0; b < c.batch; ++b) {
    for (const auto& [first, count] : {std::pair{0, 8}, {8, 1}, {9, 12}}) {
      const auto part = run_kernel<float>(cut(in, b, first, count, 107 + 40 * b), true);
      for (int h = 0; h < c.num_heads; ++h) {
        for (int i = 0; i < count; ++i) {
          const auto whole_row =
              ((static_cast<std::size_t>(b) * c.num_heads + h) * c.num_rows + first + i);
          const auto part_row = static_cast<std::size_t>(h) * count + i;
          CHECK(part.selected[part_row] == whole.selected[whole_row]);
          CHECK(std::memcmp(&part.out[part_row * c.head_dim], &whole.out[whole_row * c.head_dim],
                            sizeof(float) * static_cast<std::size_t>(c.head_dim)) == 0);
        }
      }
    }
  }
}

TEST_CASE("attention clamps lengths and gives zeros to rows without keys", "[simt][attention]") {
  Case c{"clamped"};
  c.batch = 4;
  c.num_rows = 5;
  c.num_keys = 33;
  auto in = rounded_to<float>(make_problem(c, 23));
  in.kv_lengths = std::vector<int>{33, 0, 33, 2};
  const std::vector<int> raw = {1000, -5, 33, 2};
  for_all_lane_orders([&] {
    const auto got = run_kernel<float>(in, false, true, &raw);
    Tally tally;
    compare(in, got, tally);
    const std::size_t per_sequence =
        static_cast<std::size_t>(c.num_heads) * c.num_rows * c.head_dim;
    CHECK(std::count(got.out.begin() + static_cast<std::ptrdiff_t>(per_sequence),
                     got.out.begin() + static_cast<std::ptrdiff_t>(2 * per_sequence),
                     0.0f) == static_cast<std::ptrdiff_t>(per_sequence));
  });
}

TEST_CASE("attention without keys or rows", "[simt][attention]") {
  Case c{"no keys"};
  c.num_keys = 0;
  c.num_rows = 3;
  const auto got = run_kernel<float>(make_problem(c, 1), false);
  CHECK(std::count(got.out.begin(), got.out.end(), 0.0f) ==
        static_cast<std::ptrdiff_t>(got.out.size()));
  c.num_keys = 8;
  c.num_rows = 0;
  CHECK(run_kernel<float>(make_problem(c, 1), false).out.empty());
}

TEST_CASE("NaN and infinity stay in the rows that see them", "[simt][attention]") {
  Case c{"NaN"};
  c.num_rows = 12;
  c.num_keys = 45;
  const auto clean_in = rounded_to<float>(make_problem(c, 29));
  const auto clean = run_kernel<float>(clean_in, false);
  const auto row_of = [&](const KernelResult<float>& result, int h, int i) {
    const auto begin = result.out.begin() + (std::ptrdiff_t{h} * c.num_rows + i) * c.head_dim;
    return std::vector<float>(begin, begin + c.head_dim);
  };
  const int bad_position = 38;  // row 5 sees it, row 4 does not
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    for (auto member : {&reference::AttentionProblem::key, &reference::AttentionProblem::value,
                        &reference::AttentionProblem::query}) {
      auto in = clean_in;
      const bool in_query = member == &reference::AttentionProblem::query;
      const int at = in_query ? 5 : bad_position;
      (in.*member)[static_cast<std::size_t>(at) * c.head_dim + 7] = bad;  // head 0
      for_all_lane_orders([&] {
        const auto got = run_kernel<float>(in, false);
        for (int i = 0; i < c.num_rows; ++i) {
          CHECK(same_bits(row_of(got, 1, i), row_of(clean, 1, i)));
          const bool sees = in_query ? i == 5 : i >= 5;
          if (!sees) CHECK(same_bits(row_of(got, 0, i), row_of(clean, 0, i)));
          const auto row = row_of(got, 0, i);
          if (sees && std::isnan(bad))
            CHECK(std::any_of(row.begin(), row.end(), [](float x) { return std::isnan(x); }));
        }
      });
    }
  }
}

TEST_CASE("keys with a score of minus infinity get no attention", "[simt][attention]") {
  // 32 such keys come first: the running maximum is still minus infinity after a whole tile.
  reference::AttentionProblem in;
  in.num_keys = 34;
  in.query = {1.0};
  in.key.assign(34, -INFINITY);
  in.key[32] = in.key[33] = 2.0;
  in.value.assign(34, 5.0);
  in.value[33] = 7.0;
  in.sink_scores.assign(34, 0.0f);
  in.visual_mask.assign(34, 0);
  for_all_lane_orders([&] {
    const auto got = run_kernel<float>(in, false);
    CHECK(got.out[0] == Approx(6.0));
  });
  // No score above it at all: nothing to attend to.
  in.key.assign(34, -INFINITY);
  for_all_lane_orders([&] {
    const auto got = run_kernel<float>(in, false);
    CHECK(got.out[0] == 0.0f);
    CHECK(got.class_mass == std::vector<float>(4, 0.0f));
  });
}

TEST_CASE("attention without trace tensors writes the same result", "[simt][attention]") {
  const auto in = rounded_to<float>(make_problem({"trace"}, 2));
  CHECK(same_bits(run_kernel<float>(in, false, true).out, run_kernel<float>(in, false, false).out));
}

TEST_CASE("attention refuses a head size above 256", "[simt][attention]") {
  libvar::cuda::AttentionArguments<float> args = {};
  args.batch = args.num_heads = args.num_kv_heads = args.num_rows = args.num_keys = 1;
  args.head_dim = 257;
  CHECK(libvar::cuda::launch_attention(args, nullptr) == cudaErrorInvalidValue);
}
