// Each attention kernel by itself, whatever shape it would be chosen for: borders of its ranges and
// tiles, independence of rows, NaN, and the launches that a call is cut into.

#include <cmath>
#include <random>

#include "attention_run.h"

using cuda::AttentionKernel;
using libvar::HeadRule;

namespace {

template <typename Element, AttentionKernel kWhich>
struct Subject {
  using T = Element;
  static constexpr AttentionKernel kKernel = kWhich;
};

using DecodeFloat = Subject<float, AttentionKernel::kDecode>;
using DecodeHalf = Subject<__half, AttentionKernel::kDecode>;
using DecodeBfloat = Subject<__nv_bfloat16, AttentionKernel::kDecode>;
using GroupHalf = Subject<__half, AttentionKernel::kGroup>;
using GroupBfloat = Subject<__nv_bfloat16, AttentionKernel::kGroup>;
using RowsHalf = Subject<__half, AttentionKernel::kRows>;
using RowsBfloat = Subject<__nv_bfloat16, AttentionKernel::kRows>;

#define LIBVAR_SUBJECTS \
  DecodeFloat, DecodeHalf, DecodeBfloat, GroupHalf, GroupBfloat, RowsHalf, RowsBfloat

libvar::RedistributionRule easy_rule() {
  libvar::RedistributionRule rule;
  rule.rho = 0.6f;
  rule.min_visual_mass = 0.1f;
  return rule;
}

template <typename S>
Tally check(const Case& c, simt::LaneOrder order = simt::LaneOrder::kForward) {
  INFO(c.name << ", kernel " << static_cast<int>(S::kKernel) << ", "
              << ElementType<typename S::T>::kName);
  const auto in =
      rounded_to<typename S::T>(make_problem(c, 7 * static_cast<unsigned>(c.num_keys) + 3));
  Tally tally;
  simt::set_schedule({order, 1});
  const bool loops = c.num_keys % 2 != 0;  // blocks over ranges
  compare(in,
          run_kernel<typename S::T>(in, {.transposed = true,
                                         .kernel = S::kKernel,
                                         .most_blocks = loops ? 1 : cuda::kMostBlocks}),
          tally, S::kKernel);
  simt::set_schedule({});
  CHECK(tally.flips <= 1 + tally.rows / 50);
  return tally;
}

template <typename T>
std::vector<T> row_of(const KernelResult<T>& result, const Case& c, int head, int row) {
  const auto at = (std::ptrdiff_t{head} * c.num_rows + row) * c.head_dim;
  return {result.out.begin() + at, result.out.begin() + at + c.head_dim};
}

}  // namespace

TEMPLATE_TEST_CASE("a kernel agrees with the oracle at the borders of its ranges",
                   "[simt][attention]", LIBVAR_SUBJECTS) {
  int turn = 0;
  for (const int keys : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 192, 255, 256, 257}) {
    Case c{"keys " + std::to_string(keys)};
    c.num_keys = keys;
    c.num_rows = std::min(keys, 5);
    c.num_heads = 2;
    c.num_kv_heads = 1;
    c.rule = easy_rule();
    check<TestType>(c, simt::kAllLaneOrders[turn++ % 4]);
  }
}

TEMPLATE_TEST_CASE("a kernel agrees with the oracle for its head sizes and groups",
                   "[simt][attention]", LIBVAR_SUBJECTS) {
  int turn = 0;
  for (const int head_dim : {64, 80, 96, 128}) {
    for (const int group : {1, 2, 4, 7}) {
      Case c{"head size " + std::to_string(head_dim) + ", group " + std::to_string(group)};
      c.head_dim = head_dim;
      c.num_heads = group * (group < 4 ? 2 : 1);
      c.num_kv_heads = group < 4 ? 2 : 1;
      c.num_rows = group == 7 ? 1 : 3;
      c.num_keys = 150;
      c.rule = easy_rule();
      check<TestType>(c, simt::kAllLaneOrders[turn++ % 4]);
    }
  }
}

TEMPLATE_TEST_CASE("a kernel agrees with the oracle for every place of sinks and images",
                   "[simt][attention]", LIBVAR_SUBJECTS) {
  Tally total;
  for (const Sinks sinks : {Sinks::kSome, Sinks::kNone, Sinks::kAllKeys, Sinks::kAfterRows,
                            Sinks::kOnlyText, Sinks::kAllVisual}) {
    for (const Visual visual : {Visual::kSpan, Visual::kNone, Visual::kTwoSpans}) {
      Case c{"sinks " + std::to_string(static_cast<int>(sinks)) + ", visual " +
             std::to_string(static_cast<int>(visual))};
      c.sinks = sinks;
      c.visual = visual;
      c.batch = 2;
      c.has_lengths = true;
      c.num_rows = 9;
      c.num_keys = 160;
      c.rule = easy_rule();
      c.rule.ratio_epsilon = sinks == Sinks::kSome ? 2e-3f : 0.0f;
      const Tally tally = check<TestType>(c);
      total.rows += tally.rows;
      total.selected += tally.selected;
    }
  }
  CHECK(total.selected > total.rows / 20);
  CHECK(total.selected < total.rows * 19 / 20);
}

// ratio_epsilon times the number of visual keys decides here which rows are selected.
TEMPLATE_TEST_CASE("a kernel counts each visual key that a row sees once", "[simt][attention]",
                   LIBVAR_SUBJECTS) {
  for (const float rho : {0.65f, 0.7f, 0.75f, 0.8f}) {
    Case c{"rho " + std::to_string(rho)};
    c.num_heads = c.num_kv_heads = 4;
    c.rule = easy_rule();
    c.rule.rho = rho;
    c.rule.ratio_epsilon = 2e-2f;
    check<TestType>(c);
  }
}

TEMPLATE_TEST_CASE("tensor cores agree with the oracle over many rows and long ranges",
                   "[simt][attention]", GroupBfloat, RowsBfloat, RowsHalf) {
  Case c{"150 packed rows"};
  c.num_rows = 75;
  c.num_kv_heads = 1;
  c.num_keys = 300;
  c.visual = Visual::kTwoSpans;
  c.rule = easy_rule();
  CHECK(check<TestType>(c, simt::LaneOrder::kRandom).selected > 20);
  c.name = "past the short ranges";
  c.num_heads = 1;
  c.num_rows = 3;
  c.num_keys = 1024 + 512 + 70;
  check<TestType>(c, simt::LaneOrder::kReverse);
}

TEMPLATE_TEST_CASE("as many row tiles as fill a GPU go through all keys", "[simt][attention]",
                   RowsBfloat, RowsHalf) {
  Case c{"one range"};
  c.num_heads = c.num_kv_heads = cuda::kManyTiles;
  c.num_rows = 1;
  c.num_keys = 605;
  c.rule = easy_rule();
  cuda::AttentionArguments<typename TestType::T> args = {};
  args.num_heads = args.num_kv_heads = c.num_heads;
  args.num_rows = c.num_rows;
  REQUIRE(cuda::key_ranges(AttentionKernel::kRows, args).count(c.num_keys) == 1);
  CHECK(check<TestType>(c).selected > 20);
}

TEMPLATE_TEST_CASE("every lane order gives a kernel's own bits", "[simt][attention]",
                   LIBVAR_SUBJECTS) {
  using T = typename TestType::T;
  Case c{"orders"};
  c.num_kv_heads = 1;
  c.num_rows = 12;
  c.num_keys = 300;
  c.rule = easy_rule();
  const auto in = rounded_to<T>(make_problem(c, 11));
  std::vector<T> first;
  for_all_lane_orders([&] {
    const auto got = run_kernel<T>(in, {.kernel = TestType::kKernel});
    if (first.empty()) first = got.out;
    CHECK(same_bits(got.out, first));
    // One block for a row tile goes through all ranges, one after the other.
    const auto looped = run_kernel<T>(in, {.kernel = TestType::kKernel, .most_blocks = 1});
    CHECK(same_bits(looped.out, first));
    CHECK(
        std::none_of(got.out.begin(), got.out.end(), [](T x) { return std::isnan(to_double(x)); }));
  });
}

TEMPLATE_TEST_CASE("a row's bits depend on nothing but the keys it sees", "[simt][attention]",
                   LIBVAR_SUBJECTS, (Subject<float, AttentionKernel::kGeneral>)) {
  using T = typename TestType::T;
  for (const int num_kv_heads : {1, 2}) {
    Case c{"independence"};
    c.batch = 2;
    c.num_kv_heads = num_kv_heads;
    c.num_rows = 21;
    c.num_keys = 165;
    c.has_lengths = true;
    c.has_params = true;
    const auto in = rounded_to<T>(make_problem(c, 17));
    const auto whole = run_kernel<T>(in, {.kernel = TestType::kKernel});
    CHECK(std::count(whole.selected.begin(), whole.selected.end(), 1) > 10);
    // The launches that a call is cut into don't show either: here one row tile and sequence each.
    const auto pieces = run_kernel<T>(in, {.kernel = TestType::kKernel, .scratch_bytes = 1});
    CHECK(same_bits(pieces.out, whole.out));
    CHECK(pieces.selected == whole.selected);
    for (int b = 0; b < c.batch; ++b) {
      for (const auto& [first, count] : {std::pair{0, 8}, {8, 1}, {9, 12}}) {
        const auto part = run_kernel<T>(cut(in, b, first, count, 167 + 140 * b),
                                        {.transposed = true, .kernel = TestType::kKernel});
        for (int h = 0; h < c.num_heads; ++h) {
          for (int i = 0; i < count; ++i) {
            const auto whole_row =
                (static_cast<std::size_t>(b) * c.num_heads + h) * c.num_rows + first + i;
            const auto part_row = static_cast<std::size_t>(h) * count + i;
            CHECK(part.selected[part_row] == whole.selected[whole_row]);
            CHECK(std::memcmp(&part.out[part_row * c.head_dim], &whole.out[whole_row * c.head_dim],
                              sizeof(T) * static_cast<std::size_t>(c.head_dim)) == 0);
          }
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("p = 0 gives a kernel the bits of plain attention", "[simt][attention]",
                   LIBVAR_SUBJECTS) {
  using T = typename TestType::T;
  Case c{"p = 0"};
  c.num_rows = 13;
  c.num_keys = 140;
  c.rule = easy_rule();
  c.rule.p = 0.0f;
  auto in = rounded_to<T>(make_problem(c, 3));
  const How how = {.kernel = TestType::kKernel};
  const auto zero = run_kernel<T>(in, how);
  CHECK(std::count(zero.selected.begin(), zero.selected.end(), 1) > 5);
  in.rule.head_rule = HeadRule::kNone;
  const auto off = run_kernel<T>(in, how);
  CHECK(same_bits(zero.out, off.out));
  in.rule = easy_rule();
  const auto on = run_kernel<T>(in, how);
  for (int h = 0; h < c.num_heads; ++h) {
    for (int i = 0; i < c.num_rows; ++i) {
      CHECK(same_bits(row_of(on, c, h, i), row_of(off, c, h, i)) ==
            (on.selected[static_cast<std::size_t>(h) * c.num_rows + i] == 0));
    }
  }
}

TEMPLATE_TEST_CASE("the kernel without classes is plain attention", "[simt][attention]",
                   LIBVAR_SUBJECTS) {
  using T = typename TestType::T;
  Case c{"plain"};
  c.num_rows = 9;
  c.num_keys = 200;
  c.rule.head_rule = HeadRule::kNone;
  auto in = rounded_to<T>(make_problem(c, 5));
  auto got = run_kernel<T>(in, {.kernel = TestType::kKernel, .with_classes = false});
  CHECK(std::count(got.selected.begin(), got.selected.end(), 0) ==
        static_cast<std::ptrdiff_t>(got.selected.size()));
  got.class_mass.clear();
  Tally tally;
  compare(in, got, tally, TestType::kKernel);
}

TEMPLATE_TEST_CASE("NaN and infinity stay in the rows that see them", "[simt][attention]",
                   LIBVAR_SUBJECTS, (Subject<float, AttentionKernel::kGeneral>)) {
  using T = typename TestType::T;
  Case c{"NaN"};
  c.num_rows = 12;
  c.num_keys = 145;
  const auto clean_in = rounded_to<T>(make_problem(c, 29));
  const How how = {.kernel = TestType::kKernel};
  const auto clean = run_kernel<T>(clean_in, how);
  const int bad_row = 5;
  const int bad_position = c.num_keys - c.num_rows + bad_row;  // the rows before do not see it
  int turn = 0;
  for (const double bad : {static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
    for (auto member : {&reference::AttentionProblem::key, &reference::AttentionProblem::value,
                        &reference::AttentionProblem::query}) {
      auto in = clean_in;
      const bool in_query = member == &reference::AttentionProblem::query;
      const int at = in_query ? bad_row : bad_position;
      (in.*member)[static_cast<std::size_t>(at) * c.head_dim + 7] = bad;  // head 0
      simt::set_schedule({simt::kAllLaneOrders[turn++ % 4], 1});
      const auto got = run_kernel<T>(in, how);
      for (int i = 0; i < c.num_rows; ++i) {
        CHECK(same_bits(row_of(got, c, 1, i), row_of(clean, c, 1, i)));
        const bool sees = in_query ? i == bad_row : i >= bad_row;
        if (!sees) CHECK(same_bits(row_of(got, c, 0, i), row_of(clean, c, 0, i)));
        const auto row = row_of(got, c, 0, i);
        if (sees && (std::isnan(bad) || member == &reference::AttentionProblem::value))
          CHECK(std::any_of(row.begin(), row.end(),
                            [](T x) { return !std::isfinite(to_double(x)); }));
        // A value's NaN is one dimension's.
        if (sees && member == &reference::AttentionProblem::value) {
          CHECK(std::count_if(row.begin(), row.end(),
                              [](T x) { return !std::isfinite(to_double(x)); }) == 1);
        }
      }
    }
  }
  simt::set_schedule({});
}

TEMPLATE_TEST_CASE("a kernel gives keys with a score of minus infinity no attention",
                   "[simt][attention]", LIBVAR_SUBJECTS) {
  using T = typename TestType::T;
  // The first 140 keys have such scores: whole ranges have no maximum.
  reference::AttentionProblem in;
  in.num_keys = 142;
  in.head_dim = 64;
  in.query.assign(64, 0.0);
  in.query[0] = 1.0;
  in.key.assign(142 * 64, 0.0);
  in.value.assign(142 * 64, 5.0);
  for (int j = 0; j < 140; ++j) in.key[static_cast<std::size_t>(j) * 64] = -INFINITY;
  for (int d = 0; d < 64; ++d) in.value[141 * 64 + static_cast<std::size_t>(d)] = 7.0;
  in.sink_scores.assign(142, 0.0f);
  in.visual_mask.assign(142, 0);
  const How how = {.kernel = TestType::kKernel};
  const auto got = run_kernel<T>(in, how);
  for (const T x : got.out) CHECK(to_double(x) == 6.0);
  for (int j = 140; j < 142; ++j) in.key[static_cast<std::size_t>(j) * 64] = -INFINITY;
  const auto none = run_kernel<T>(in, how);
  for (const T x : none.out) CHECK(to_double(x) == 0.0);
  CHECK(none.class_mass == std::vector<float>(4, 0.0f));
}

TEST_CASE("the kernel is chosen by sizes, dtype and alignment", "[simt][attention]") {
  alignas(16) static const unsigned char memory[64] = {};
  const auto choose = [](auto element, int heads, int kv_heads, int rows, int head_dim,
                         int padding = 0, int misplaced = 0) {
    using T = decltype(element);
    cuda::AttentionArguments<T> args = {};
    args.query = args.value = reinterpret_cast<const T*>(memory);
    args.key = reinterpret_cast<const T*>(memory) + misplaced;
    args.query_stride = args.key_stride =
        args.value_stride = {head_dim * 64, head_dim * 8, head_dim + padding};
    args.batch = 1;
    args.num_heads = heads;
    args.num_kv_heads = kv_heads;
    args.num_rows = rows;
    args.num_keys = 100;
    args.head_dim = head_dim;
    return cuda::choose_attention_kernel(args);
  };
  const __nv_bfloat16 bfloat{};
  CHECK(choose(bfloat, 32, 32, 1, 128) == AttentionKernel::kDecode);
  CHECK(choose(bfloat, 32, 32, 3, 128) == AttentionKernel::kGroup);
  CHECK(choose(bfloat, 28, 4, 1, 128) == AttentionKernel::kGroup);
  CHECK(choose(bfloat, 28, 4, 3, 128) == AttentionKernel::kRows);
  CHECK(choose(bfloat, 32, 32, 17, 80) == AttentionKernel::kRows);
  CHECK(choose(bfloat, 28, 4, 1, 256) == AttentionKernel::kDecode);
  CHECK(choose(bfloat, 28, 4, 64, 256) == AttentionKernel::kGeneral);
  CHECK(choose(bfloat, 32, 32, 1, 128, 3) == AttentionKernel::kGeneral);
  CHECK(choose(bfloat, 32, 32, 1, 128, 0, 1) == AttentionKernel::kGeneral);
  CHECK(choose(bfloat, 32, 32, 1, 100) == AttentionKernel::kGeneral);
  CHECK(choose(0.0f, 32, 32, 1, 100) == AttentionKernel::kDecode);
  CHECK(choose(0.0f, 32, 32, 64, 128) == AttentionKernel::kGeneral);
}

TEST_CASE("rows that are not aligned are computed too", "[simt][attention]") {
  Case c{"unaligned"};
  c.num_rows = 4;
  const auto in = rounded_to<__half>(make_problem(c, 2));
  Tally tally;
  compare(in, run_kernel<__half>(in, {.transposed = true, .padding = 3}), tally,
          AttentionKernel::kGeneral);
}

TEST_CASE("the memory between the kernels is bounded", "[simt][attention]") {
  cuda::AttentionArguments<__nv_bfloat16> args = {};
  args.head_dim = 128;
  args.num_heads = 28;
  args.num_kv_heads = 4;
  args.num_keys = 16384;
  constexpr std::size_t kMost = std::size_t{64} << 20;
  for (const int batch : {1, 3, 64}) {
    for (const int rows : {1, 16, 512, 4096}) {
      args.batch = batch;
      args.num_rows = rows;
      const auto kernel = rows == 1 ? AttentionKernel::kGroup : AttentionKernel::kRows;
      const auto pieces = cuda::cut_attention(args, kernel, true, kMost);
      CHECK(pieces.bytes <= kMost + (std::size_t{1} << 20));
      CHECK(pieces.num_rows >= 1);
      CHECK(pieces.num_rows <= rows);
      CHECK(pieces.num_sequences >= 1);
      CHECK(pieces.num_sequences <= batch);
    }
  }
}
