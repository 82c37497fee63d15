// The attention kernel against the double-precision oracle, in every lane order.

#include <catch2/catch.hpp>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "attention_run.h"

using libvar::ClassSet;
using libvar::HeadRule;
using libvar::RedistributionRule;
using libvar::TokenClass;

namespace {

template <typename T>
Tally check_case(const Case& c) {
  INFO(c.name << ", " << ElementType<T>::kName);
  const auto in = rounded_to<T>(make_problem(c, 31 * static_cast<unsigned>(c.num_keys) + 5));
  Tally tally;
  // Every lane order is tried where a kernel's own tests are (attention_kernels_test.cpp).
  simt::set_schedule({simt::LaneOrder::kRandom, 3});
  const auto first = run_kernel<T>(in);
  compare(in, first, tally);
  simt::set_schedule({simt::LaneOrder::kReverse, 1});
  CHECK(same_bits(run_kernel<T>(in, {.transposed = true}).out, first.out));
  simt::set_schedule({});
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
  const auto got = run_kernel<float>(in);
  CHECK(got.out[0] == Approx(1.0 + 10.0 + 400.0 + 2000.0));
  CHECK(got.selected[0] == 1);
  CHECK(got.class_mass == std::vector<float>{0.25f, 0.25f, 0.25f, 0.25f});
  in.rule = rule_with(0.51, 0.5, 0.5);
  const auto plain = run_kernel<float>(in);
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
  const auto zero = run_kernel<TestType>(in);
  CHECK(std::count(zero.selected.begin(), zero.selected.end(), 1) > 10);
  in.rule.head_rule = HeadRule::kNone;
  const auto off = run_kernel<TestType>(in);
  CHECK(std::count(off.selected.begin(), off.selected.end(), 1) == 0);
  CHECK(same_bits(zero.out, off.out));
  in.rule = rule_with(0.3, 0.6, 0.1);
  const auto on = run_kernel<TestType>(in);
  for (std::size_t row = 0; row < on.selected.size(); ++row) {
    const bool same = std::memcmp(&on.out[row * c.head_dim], &off.out[row * c.head_dim],
                                  sizeof(TestType) * static_cast<std::size_t>(c.head_dim)) == 0;
    CHECK(same == (on.selected[row] == 0));
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
    const auto got = run_kernel<float>(in, {.raw_lengths = &raw});
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
  const auto got = run_kernel<float>(make_problem(c, 1));
  CHECK(std::count(got.out.begin(), got.out.end(), 0.0f) ==
        static_cast<std::ptrdiff_t>(got.out.size()));
  c.num_keys = 8;
  c.num_rows = 0;
  CHECK(run_kernel<float>(make_problem(c, 1)).out.empty());
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
    const auto got = run_kernel<float>(in);
    CHECK(got.out[0] == Approx(6.0));
  });
  // No score above it at all: nothing to attend to.
  in.key.assign(34, -INFINITY);
  for_all_lane_orders([&] {
    const auto got = run_kernel<float>(in);
    CHECK(got.out[0] == 0.0f);
    CHECK(got.class_mass == std::vector<float>(4, 0.0f));
  });
}

TEST_CASE("attention without trace tensors writes the same result", "[simt][attention]") {
  const auto in = rounded_to<float>(make_problem({"trace"}, 2));
  CHECK(same_bits(run_kernel<float>(in).out, run_kernel<float>(in, {.traced = false}).out));
}

TEST_CASE("attention refuses a head size above 256", "[simt][attention]") {
  cuda::AttentionArguments<float> args = {};
  args.batch = args.num_heads = args.num_kv_heads = args.num_rows = args.num_keys = 1;
  args.head_dim = 257;
  CHECK(cuda::launch_attention(args, cuda::AttentionKernel::kGeneral, {}, nullptr, true, nullptr) ==
        cudaErrorInvalidValue);
}
