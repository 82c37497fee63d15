// redistribute and redistribute_ against numbers worked out by hand, the double-precision oracle
// and their properties. The builds of the kernel give the same bits, so most tests run one of them.

#include <sys/mman.h>
#include <unistd.h>

#include "unit/ops/builds.h"
#include "unit/ops/support.h"

namespace libvar::test {
namespace {

// Probabilities with attention on sinks and on the visual span, in the dtype.
at::Tensor random_probs(at::IntArrayRef sizes, at::ScalarType type,
                        const at::Generator& generator) {
  return at::softmax(at::randn(sizes, generator, at::kFloat).mul(2.0), -1).to(type);
}

// One sequence of five keys: text sink, visual sink, two visual non-sinks, text.
struct TinyCase {
  at::Tensor probs = at::tensor({0.3f, 0.1f, 0.2f, 0.3f, 0.1f}).view({1, 1, 1, 5});
  at::Tensor sink_scores = at::tensor({30.0f, 20.0f, 19.0f, 0.0f, 1.0f}).view({1, 5});
  at::Tensor visual_mask = at::tensor({0, 1, 1, 1, 0}).to(at::kBool).view({1, 5});
};

TEST_CASE("redistribute gives the numbers worked out by hand", "[redistribute]") {
  const TinyCase tiny;
  // m_VS 0.1, m_VN 0.5, r = 5/6 >= 0.8; omega = 0.6 * (0.1 + 0.3) = 0.24; targets times 1 + 0.24 /
  // 0.5 = 1.48.
  const std::vector<double> expected = {0.12, 0.04, 0.296, 0.444, 0.1};
  CHECK(largest_difference(redistribute(tiny.probs, tiny.sink_scores, tiny.visual_mask),
                           expected) <= 1e-7);

  // Text only, every head: VN stays, TN takes omega = 0.5 * 0.4.
  RedistributionRule rule;
  rule.p = 0.5f;
  rule.targets = class_set(TokenClass::kTextNonSink);
  rule.head_rule = HeadRule::kAll;
  const std::vector<double> text = {0.15, 0.05, 0.2, 0.3, 0.3};
  CHECK(largest_difference(redistribute(tiny.probs, tiny.sink_scores, tiny.visual_mask, {}, rule),
                           text) <= 1e-7);
}

TEST_CASE("redistribute equals the oracle at every size and dtype", "[redistribute]") {
  Flips flips;
  std::uint64_t seed = 100;
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t num_keys : kSweepSizes) {
      for (const bool strided : {false, true}) {
        const at::Generator generator = seeded(++seed);
        const std::int64_t batch = 2, num_heads = 3, num_rows = num_keys % 2 == 0 ? 5 : 33;
        at::Tensor probs = random_probs({batch, num_heads, num_rows, num_keys}, type, generator);
        if (strided) {  // [B, Q, H, K] in memory, rows apart
          const at::Tensor apart = at::full({batch, num_rows, num_heads, num_keys + 3}, kNan, type);
          apart.narrow(3, 0, num_keys).copy_(probs.transpose(1, 2));
          probs = apart.narrow(3, 0, num_keys).transpose(1, 2);
        }
        const at::Tensor sink_scores = random_sink_scores({batch, num_keys}, 8, generator);
        const at::Tensor visual_mask = span_mask(batch, num_keys);
        const at::Tensor row_mask = at::rand({batch, num_rows}, generator, at::kFloat).lt(0.8);
        INFO("seed " << seed << ", " << type << ", K " << num_keys << (strided ? ", strided" : ""));

        const at::Tensor actual = redistribute(probs, sink_scores, visual_mask, row_mask);
        REQUIRE(actual.is_contiguous());
        reference::RedistributeProblem problem =
            problem_of(probs, sink_scores, visual_mask, row_mask, {});
        const auto own = reference::redistribute(problem);
        // The op says nothing of its selection: a row that changed was selected.
        const at::Tensor changed = actual.ne(probs).any(-1);
        const std::vector<std::uint8_t> selection = bytes(changed);
        flips.count(selection, own.selected, own.margin, type == at::kFloat ? 1e-5 : 1e-4);
        const auto expected = reference::redistribute(problem, &selection);
        const double bound = type == at::kFloat ? kRedistributeBound : 0.51 * unit(type);
        CHECK(largest_difference(actual, expected.probs) <= bound);
        // Each row still sums to 1, in half types to the rounding of its elements.
        const double sum_bound = type == at::kFloat ? 1e-5 : 2 * unit(type);
        CHECK(at::sub(actual.to(at::kDouble).sum(-1), 1.0).abs().max().item<double>() <= sum_bound);

        with_each_build([&] {
          CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, row_mask), actual));
          at::Tensor target = at::empty_strided(probs.sizes(), probs.strides(), probs.options());
          target.copy_(probs);
          redistribute_(target, sink_scores, visual_mask, row_mask);
          CHECK(same_bits(target, actual));
        });
      }
    }
  }
  WARN("redistribute: " << flips.text());
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > flips.rows / 10);
  CHECK(flips.selected < flips.rows * 9 / 10);
}

TEST_CASE("redistribute in half types errs at most twice as much as PyTorch", "[redistribute]") {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    const at::Generator generator = seeded(7);
    const at::Tensor probs = random_probs({1, 4, 64, 640}, type, generator);
    const at::Tensor sink_scores = random_sink_scores({1, 640}, 8, generator);
    const at::Tensor visual_mask = span_mask(1, 640);
    RedistributionRule rule;
    rule.head_rule = HeadRule::kAll;  // the same rows in both
    const at::Tensor actual = redistribute(probs, sink_scores, visual_mask, {}, rule);
    const auto exact =
        reference::redistribute(problem_of(probs, sink_scores, visual_mask, {}, rule));

    const at::Tensor sink = sink_scores.ge(rule.tau);
    const at::Tensor target = visual_mask.logical_and(sink.logical_not());
    const at::Tensor zero = at::zeros({}, type);
    const at::Tensor omega = at::where(sink, probs, zero).sum(-1, true).mul(rule.p);
    const at::Tensor share = at::where(target, probs, zero).sum(-1, true);
    const at::Tensor eager = at::where(sink, probs * (1.0 - rule.p),
                                       at::where(target, probs * (omega / share + 1.0), probs));
    const double eager_error = largest_difference(eager, exact.probs);
    const double error = largest_difference(actual, exact.probs);
    INFO(type << ": error " << error << ", PyTorch's " << eager_error);
    CHECK(error <= 2.0 * eager_error + unit(type) * actual.max().item<double>());
  }
}

TEST_CASE("redistribute leaves rows alone that are not selected", "[redistribute]") {
  const at::Generator generator = seeded(11);
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor probs = random_probs({2, 3, 17, 100}, type, generator);
    const at::Tensor sink_scores = random_sink_scores({2, 100}, 8, generator);
    const at::Tensor visual_mask = span_mask(2, 100);
    RedistributionRule rule;

    const at::Tensor no_rows = at::zeros({2, 17}, at::kBool);
    CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, no_rows), probs));
    const at::Tensor no_sinks = at::zeros({2, 100});
    CHECK(same_bits(redistribute(probs, no_sinks, visual_mask), probs));
    const at::Tensor no_visual = at::zeros({2, 100}, at::kBool);
    CHECK(same_bits(redistribute(probs, sink_scores, no_visual), probs));
    const at::Tensor all_sinks = at::full({2, 100}, 30.0f);  // no target: m_VN = 0
    CHECK(same_bits(redistribute(probs, all_sinks, visual_mask), probs));
    const at::Tensor text_sinks = at::where(visual_mask, at::zeros({}), sink_scores);  // rule 3
    CHECK(same_bits(redistribute(probs, text_sinks, visual_mask), probs));
    const at::Tensor unknown = at::full({2, 100}, kNan, at::kFloat);
    CHECK(same_bits(redistribute(probs, unknown, visual_mask), probs));
    rule.tau = std::numeric_limits<float>::infinity();
    CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, {}, rule), probs));
    rule = {};
    rule.head_rule = HeadRule::kNone;
    CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, {}, rule), probs));
    rule = {};
    rule.p = 0.0f;
    CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, {}, rule), probs));
    rule = {};
    rule.min_visual_mass = 1.0f;
    CHECK(same_bits(redistribute(probs, sink_scores, visual_mask, {}, rule), probs));
    // And the same call does change rows without any of these.
    CHECK_FALSE(same_bits(redistribute(probs, sink_scores, visual_mask), probs));
  }
}

TEST_CASE("redistribute_ writes selected rows only", "[redistribute]") {
  const at::Generator generator = seeded(12);
  at::Tensor probs = random_probs({1, 2, 6, 50}, at::kFloat, generator);
  // No probability row, but what a write that changes nothing would not keep: a NaN with a payload.
  const int payload_bits = 0x7fa12345;
  probs.view(at::kInt)[0][1][3].fill_(payload_bits);
  const at::Tensor before = probs.clone();
  const at::Tensor sink_scores = random_sink_scores({1, 50}, 6, generator);
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  rule.p = 0.5f;
  redistribute_(probs, sink_scores, span_mask(1, 50), {}, rule);
  for (int h = 0; h < 2; ++h) {
    for (int q = 0; q < 6; ++q)
      CHECK(same_bits(probs[0][h][q], before[0][h][q]) == (h == 1 && q == 3));
  }
}

TEST_CASE("redistribute_ does not touch the memory of rows that are not selected",
          "[redistribute]") {
  // Two heads, a page each; the page of the second one, whose row is not selected, can't be
  // written.
  const auto page = static_cast<std::size_t>(getpagesize());
  const auto num_keys = static_cast<std::int64_t>(page / sizeof(float));
  void* memory =
      mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(memory != MAP_FAILED);
  at::Tensor probs = at::from_blob(memory, {1, 2, 1, num_keys}, at::kFloat);
  const at::Tensor sink_scores = at::zeros({1, num_keys});
  const std::int64_t sink = num_keys / 2;  // a visual one
  sink_scores[0][sink].fill_(30.0);
  probs.fill_(1.0 / static_cast<double>(num_keys));
  probs[0][1][0][sink].fill_(0.9);  // r is far below rho
  const at::Tensor expected = redistribute(probs, sink_scores, span_mask(1, num_keys));
  REQUIRE(mprotect(static_cast<char*>(memory) + page, page, PROT_READ) == 0);
  with_each_build([&] { redistribute_(probs, sink_scores, span_mask(1, num_keys)); });
  CHECK(probs[0][0][0][sink].item<float>() < expected[0][0][0][0].item<float>());  // every time
  CHECK(same_bits(probs[0][1], expected[0][1]));
  munmap(memory, 2 * page);
}

TEST_CASE("redistribute in its general form equals the oracle", "[redistribute]") {
  const at::Generator generator = seeded(13);
  const at::Tensor probs = random_probs({2, 4, 9, 77}, at::kFloat, generator);
  const at::Tensor sink_scores = random_sink_scores({2, 77}, 5, generator);
  const at::Tensor visual_mask = at::rand({2, 77}, generator, at::kFloat).lt(0.5);
  int cases = 0;
  for (ClassSet sources = 0; sources < 16; ++sources) {
    for (ClassSet targets = 0; targets < 16; ++targets) {
      if ((sources & targets) != 0) continue;
      for (const HeadRule head_rule : {HeadRule::kRatio, HeadRule::kAll, HeadRule::kNone}) {
        RedistributionRule rule;
        rule.sources = sources;
        rule.targets = targets;
        rule.head_rule = head_rule;
        rule.ratio_epsilon = cases % 2 == 0 ? 0.0f : 1e-3f;
        const at::Tensor actual = redistribute(probs, sink_scores, visual_mask, {}, rule);
        const auto expected =
            reference::redistribute(problem_of(probs, sink_scores, visual_mask, {}, rule));
        INFO("sources " << int{sources} << ", targets " << int{targets} << ", head rule "
                        << int(head_rule));
        CHECK(largest_difference(actual, expected.probs) <= kRedistributeBound);
        ++cases;
      }
    }
  }
  CHECK(cases == 3 * 81);
}

TEST_CASE("ratio_epsilon changes which heads are image-centric", "[redistribute]") {
  const TinyCase tiny;  // r = 5/6; with epsilon: 1 - 0.1 / (0.6 + 0.1 * 3) = 8/9
  RedistributionRule rule;
  rule.rho = 0.85f;
  CHECK(same_bits(redistribute(tiny.probs, tiny.sink_scores, tiny.visual_mask, {}, rule),
                  tiny.probs));
  rule.ratio_epsilon = 0.1f;
  CHECK_FALSE(same_bits(redistribute(tiny.probs, tiny.sink_scores, tiny.visual_mask, {}, rule),
                        tiny.probs));
}

TEST_CASE("a NaN probability stays in its row and a NaN sink score makes no sink",
          "[redistribute]") {
  const at::Generator generator = seeded(14);
  at::Tensor probs = random_probs({1, 1, 3, 40}, at::kFloat, generator);
  at::Tensor sink_scores = random_sink_scores({1, 40}, 6, generator);
  sink_scores[0][7].fill_(kNan);
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  const at::Tensor clean = redistribute(probs, sink_scores, span_mask(1, 40), {}, rule);
  CHECK_FALSE(clean.isnan().any().item<bool>());
  const at::Tensor without = sink_scores.clone();
  without[0][7].fill_(0.0);
  CHECK(same_bits(clean, redistribute(probs, without, span_mask(1, 40), {}, rule)));
  probs[0][0][1][9].fill_(kNan);
  const at::Tensor result = redistribute(probs, sink_scores, span_mask(1, 40), {}, rule);
  CHECK(same_bits(result[0][0][0], clean[0][0][0]));
  CHECK(same_bits(result[0][0][2], clean[0][0][2]));
  CHECK(result[0][0][1].isnan().any().item<bool>());
}

TEST_CASE("a NaN probability spoils its own class only", "[redistribute]") {
  // Keys 0 to 31 and 64 to 79 are of one class per half, 32 to 63 of all four; the last half is not
  // full.
  const std::int64_t num_keys = 77;
  at::Tensor sink_scores = at::zeros({1, num_keys});
  at::Tensor visual_mask = at::zeros({1, num_keys}, at::kBool);
  visual_mask.narrow(1, 0, 48).fill_(true);
  sink_scores[0].slice(0, 33, 64, 3).fill_(25.0);
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor probs = random_probs({1, 1, 1, num_keys}, type, seeded(16));
    const at::Tensor clean = redistribute(probs, sink_scores, visual_mask, {}, rule);
    for (const std::int64_t key : {0, 33, 35, 49, 50, 63, 70, 76}) {
      const bool visual = key<48, sink = sink_scores[0][key].item<float>()> 0.0f;
      INFO(type << ", key " << key);
      at::Tensor spoilt = probs.clone();
      spoilt[0][0][0][key].fill_(kNan);
      // Text that is no sink: the others don't care. A source: all targets. A target: the row is
      // not selected.
      at::Tensor expected = visual && !sink ? probs.clone() : clean.clone();
      expected[0][0][0][key].fill_(kNan);
      if (sink) {
        expected.masked_fill_(visual_mask.logical_and(sink_scores.lt(20.0)), kNan);
      }
      with_each_build([&] {
        const at::Tensor result = redistribute(spoilt, sink_scores, visual_mask, {}, rule);
        CHECK(at::equal(result.isnan(), expected.isnan()));
        const at::Tensor same = result.eq(expected).logical_or(result.isnan());
        CHECK(same.all().item<bool>());
      });
    }
  }
}

TEST_CASE("the sums of a long row stay accurate", "[redistribute]") {
  const std::int64_t num_keys = (1 << 20) + 5;
  const at::Generator generator = seeded(17);
  const at::Tensor sink_scores = random_sink_scores({1, num_keys}, 64, generator);
  // One number again and again: what rounding does to it adds up instead of evening out. The sinks
  // are few and large, so that their sum does not err in the same way.
  const at::Tensor probs = at::where(sink_scores.ge(20.0), 64.0f, 1.0f)
                               .mul(0.35 / static_cast<double>(num_keys))
                               .view({1, 1, 1, num_keys});
  const at::Tensor visual_mask = span_mask(1, num_keys);
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  const auto exact = reference::redistribute(problem_of(probs, sink_scores, visual_mask, {}, rule));
  const at::Tensor expected = at::tensor(exact.probs, at::kDouble).view(probs.sizes());
  const at::Tensor actual = redistribute(probs, sink_scores, visual_mask, {}, rule);
  const double error = (actual.to(at::kDouble) / expected - 1.0).abs().max().item<double>();
  INFO("relative error " << error);
  CHECK(error <= 2e-6);
}

TEST_CASE("a tiny target mass keeps every number finite", "[redistribute]") {
  at::Tensor probs = at::tensor({0.7f, 0.3f, 0.0f, 0.0f}).view({1, 1, 1, 4});
  const at::Tensor sink_scores = at::tensor({30.0f, 30.0f, 0.0f, 0.0f}).view({1, 4});
  const at::Tensor visual_mask = at::tensor({0, 1, 1, 1}).to(at::kBool).view({1, 4});
  RedistributionRule rule;
  rule.head_rule = HeadRule::kAll;
  rule.p = 1.0f;
  for (const float tiny : {1e-44f, 1e-39f, 1.2e-38f, 1e-37f, 1e-30f}) {
    probs[0][0][0][2].fill_(tiny);
    const at::Tensor result = redistribute(probs, sink_scores, visual_mask, {}, rule);
    INFO("target mass " << tiny);
    CHECK(std::fabs(result.sum().item<double>() - 1.0) <= 1e-5);
  }
}

TEST_CASE("redistribute does not mix sequences of a batch", "[redistribute]") {
  const at::Generator generator = seeded(15);
  const at::Tensor probs = random_probs({3, 2, 5, 90}, at::kBFloat16, generator);
  const at::Tensor sink_scores = random_sink_scores({3, 90}, 8, generator);
  const at::Tensor visual_mask = at::rand({3, 90}, generator, at::kFloat).lt(0.6);
  const at::Tensor all = redistribute(probs, sink_scores, visual_mask);
  for (int b = 0; b < 3; ++b) {
    const at::Tensor one = redistribute(probs.narrow(0, b, 1), sink_scores.narrow(0, b, 1),
                                        visual_mask.narrow(0, b, 1));
    CHECK(same_bits(all.narrow(0, b, 1), one));
  }
  // Scores and mask with any strides.
  CHECK(same_bits(all, redistribute(probs, sink_scores.t().contiguous().t(),
                                    visual_mask.t().contiguous().t())));
}

TEST_CASE("redistribute takes empty tensors", "[redistribute]") {
  for (const auto& [num_rows, num_keys] : {std::pair{0, 5}, std::pair{5, 0}, std::pair{0, 0}}) {
    at::Tensor probs = at::empty({2, 3, num_rows, num_keys});
    const at::Tensor sink_scores = at::empty({2, num_keys});
    const at::Tensor visual_mask = at::empty({2, num_keys}, at::kBool);
    CHECK(redistribute(probs, sink_scores, visual_mask).sizes() == probs.sizes());
    CHECK(redistribute_(probs, sink_scores, visual_mask).is_same(probs));
  }
}

}  // namespace
}  // namespace libvar::test
