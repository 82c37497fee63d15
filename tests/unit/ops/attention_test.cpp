// attention against numbers worked out by hand and the double-precision oracle.

#include "unit/ops/support.h"

namespace libvar::test {
namespace {

// The op's result and its selection.
struct Traced {
  at::Tensor out, selected, class_mass;
};

Traced attention_with_trace(const AttentionInputs& in, const RedistributionRule& rule,
                            const std::optional<at::Tensor>& params = std::nullopt) {
  const auto sizes = in.query.sizes();
  AttentionTrace trace;
  trace.selected = at::ones({sizes[0], sizes[1], sizes[2]}, at::kBool);
  trace.class_mass = at::full({sizes[0], sizes[1], sizes[2], 4}, kNan, at::kFloat);
  const at::Tensor out = attention(in, rule, params, &trace);
  return {out, trace.selected, trace.class_mass};
}

// Holds the op to the oracle given the op's own selection, and counts where the oracle decides
// otherwise.
void check_against_oracle(const AttentionInputs& in, const RedistributionRule& rule, Flips& flips,
                          const std::optional<at::Tensor>& params = std::nullopt) {
  const Traced actual = attention_with_trace(in, rule, params);
  REQUIRE(actual.out.scalar_type() == in.query.scalar_type());
  const reference::AttentionProblem problem = problem_of(in, rule, params);
  const auto own = reference::attention(problem);
  const std::vector<std::uint8_t> selection = bytes(actual.selected);
  flips.count(selection, own.selected, own.margin, 1e-5);
  const auto expected = reference::attention(problem, &selection);
  double largest_value = 0.0;
  const int length = problem.kv_lengths ? 0 : problem.num_keys;
  for (const double value : problem.value)
    largest_value = std::fmax(largest_value, std::fabs(value));
  INFO("largest value " << largest_value << ", length " << length);
  const double rounding =
      in.query.scalar_type() == at::kFloat ? 0.0 : 0.51 * unit(in.query.scalar_type());
  CHECK(largest_difference(actual.out, expected.out) <=
        (kAttentionBound + rounding) * largest_value);
  CHECK(largest_difference(actual.class_mass, expected.class_mass) <= 1e-5);
}

TEST_CASE("attention gives the numbers worked out by hand", "[attention]") {
  // Key j scores log(a_j), so that the probabilities are the tiny case of redistribute: 0.3 0.1 0.2
  // 0.3 0.1.
  AttentionInputs in;
  in.query = at::ones({1, 1, 1, 1});
  in.key = at::log(at::tensor({0.3f, 0.1f, 0.2f, 0.3f, 0.1f})).view({1, 1, 5, 1});
  in.value = at::tensor({1.0f, 10.0f, 100.0f, 1000.0f, 10000.0f}).view({1, 1, 5, 1});
  in.sink_scores = at::tensor({30.0f, 20.0f, 19.0f, 0.0f, 1.0f}).view({1, 5});
  in.visual_mask = at::tensor({0, 1, 1, 1, 0}).to(at::kBool).view({1, 5});
  const Traced on = attention_with_trace(in, {});
  CHECK(on.out.item<double>() == Approx(0.12 + 0.4 + 29.6 + 444.0 + 1000.0));
  CHECK(on.selected.item<bool>());
  CHECK(largest_difference(on.class_mass, {0.1, 0.5, 0.3, 0.1}) <= 1e-6);
  RedistributionRule off;
  off.head_rule = HeadRule::kNone;
  const Traced plain = attention_with_trace(in, off);
  CHECK(plain.out.item<double>() == Approx(0.3 + 1.0 + 20.0 + 300.0 + 1000.0));
  CHECK_FALSE(plain.selected.item<bool>());
  CHECK(largest_difference(plain.class_mass, {0.1, 0.5, 0.3, 0.1}) <= 1e-6);
}

TEST_CASE("attention equals the oracle at every size, head layout and dtype", "[attention]") {
  Flips flips;
  std::uint64_t seed = 300;
  const std::pair<std::int64_t, std::int64_t> heads[] = {{4, 4}, {4, 2}, {3, 1}, {7, 1}};
  const std::int64_t head_dims[] = {16, 20, 64, 128, 1, 96};
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t num_keys : kSweepSizes) {
      for (const std::int64_t num_rows : {std::int64_t{1}, std::min<std::int64_t>(num_keys, 37)}) {
        ++seed;
        const auto [num_heads, num_kv_heads] = heads[seed % 4];
        AttentionSizes sizes{2, num_heads, num_kv_heads, num_rows, num_keys, head_dims[seed % 6]};
        const AttentionInputs in = random_attention(sizes, type, seed);
        INFO("seed " << seed << ", " << type << ", K " << num_keys << ", Q " << num_rows
                     << ", heads " << num_heads << "/" << num_kv_heads << ", Dh "
                     << sizes.head_dim);
        RedistributionRule rule;
        if (seed % 3 == 0) rule.ratio_epsilon = 1e-4f;
        check_against_oracle(in, rule, flips);
      }
    }
  }
  WARN("attention: " << flips.text());
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > flips.rows / 10);
  CHECK(flips.selected < flips.rows * 9 / 10);
}

TEST_CASE("attention over many keys stays within its bound", "[attention]") {
  Flips flips;
  for (const std::int64_t num_keys : {4000, 16385}) {
    AttentionInputs in = random_attention({1, 2, 1, 3, num_keys, 32}, at::kFloat, 350);
    in.value = in.value.abs();  // no cancellation that would hide a drift
    check_against_oracle(in, {}, flips);
  }
  CHECK(flips.wrong == 0);
}

TEST_CASE("attention reads any strides with contiguous heads", "[attention]") {
  Flips flips;
  for (const at::ScalarType type : kDtypes) {
    AttentionInputs in = random_attention({2, 4, 2, 21, 100, 40}, type, 360);
    const AttentionInputs plain = in;
    // Query as the projection leaves it, [B, Q, H, Dh], out of a wider fused buffer.
    const at::Tensor fused = at::full({2, 21, 4 * 40 + 160}, kNan, type);
    fused.narrow(2, 80, 160).copy_(in.query.transpose(1, 2).reshape({2, 21, 160}));
    in.query = fused.narrow(2, 80, 160).view({2, 21, 4, 40}).transpose(1, 2);
    // Key: a cache of [B, H_kv, capacity, Dh]; value: [capacity, B, H_kv, Dh].
    const at::Tensor key_cache = at::full({2, 2, 130, 40}, kNan, type);
    key_cache.narrow(2, 0, 100).copy_(in.key);
    in.key = key_cache.narrow(2, 0, 100);
    in.value = in.value.permute({2, 0, 1, 3}).contiguous().permute({1, 2, 0, 3});
    in.sink_scores = in.sink_scores.t().contiguous().t();
    in.visual_mask = in.visual_mask.t().contiguous().t();
    const at::Tensor row_mask = at::rand({21, 2}, seeded(361), at::kFloat).lt(0.7).t();
    in.row_mask = row_mask;
    REQUIRE_FALSE(in.query.is_contiguous());
    check_against_oracle(in, {}, flips);
    AttentionInputs contiguous = plain;
    contiguous.row_mask = row_mask.contiguous();
    CHECK(same_bits(attention(in), attention(contiguous)));
  }
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > 0);
}

TEST_CASE("attention never uses what lies past a sequence's length", "[attention]") {
  Flips flips;
  for (const at::ScalarType type : kDtypes) {
    AttentionInputs in = random_attention({4, 4, 2, 10, 200, 24}, type, 370);
    in.visual_mask = span_mask(4, 80).repeat({1, 3}).narrow(1, 0, 200).contiguous();
    const std::vector<int> lengths = {131, 200, 4,
                                      0};  // the third has fewer keys than rows, the last has none
    in.kv_lengths = at::tensor(lengths, at::kInt);
    const at::Tensor clean = attention(in);
    for (int b = 0; b < 4; ++b) {
      const std::int64_t behind = 200 - lengths[b];
      in.key[b].narrow(1, lengths[b], behind).fill_(kNan);
      in.value[b].narrow(1, lengths[b], behind).fill_(kNan);
      in.sink_scores[b]
          .narrow(0, lengths[b], behind)
          .fill_(std::numeric_limits<double>::infinity());
      in.visual_mask[b].narrow(0, lengths[b], behind).fill_(true);
    }
    const at::Tensor poisoned = attention(in);
    CHECK(same_bits(poisoned, clean));
    CHECK_FALSE(poisoned.isnan().any().item<bool>());
    CHECK(poisoned[2].narrow(1, 0, 6).eq(0.0).all().item<bool>());  // positions -6 to -1
    CHECK(poisoned[2].narrow(1, 6, 4).ne(0.0).any().item<bool>());
    CHECK(poisoned[3].eq(0.0).all().item<bool>());

    for (int b = 0; b < 4; ++b) {  // the oracle's largest value must be finite
      in.value[b].narrow(1, lengths[b], 200 - lengths[b]).fill_(0.0);
    }
    check_against_oracle(in, {}, flips);
  }
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > 0);
}

TEST_CASE("attention at the edges of the method equals the oracle", "[attention]") {
  Flips flips;
  const AttentionInputs base = random_attention({1, 4, 2, 30, 90, 32}, at::kFloat, 380);
  const auto selected_rows = [&](const AttentionInputs& in, const RedistributionRule& rule = {}) {
    check_against_oracle(in, rule, flips);
    return attention_with_trace(in, rule).selected.sum().item<std::int64_t>();
  };
  CHECK(selected_rows(base) > 0);
  AttentionInputs in = base;

  SECTION("no sink") {
    in.sink_scores = at::zeros({1, 90});
    CHECK(selected_rows(in) == 0);
  }
  SECTION("all sinks: no visual non-sink mass") {
    in.sink_scores = at::full({1, 90}, 30.0);
    CHECK(selected_rows(in) == 0);
  }
  SECTION("text sinks only") {
    in.sink_scores = at::where(in.visual_mask, at::zeros({}), at::full({}, 30.0));
    CHECK(selected_rows(in) == 0);
  }
  SECTION("no visual token") {
    in.visual_mask = at::zeros({1, 90}, at::kBool);
    CHECK(selected_rows(in) == 0);
  }
  SECTION("visual tokens only: every row is visual") {
    in.visual_mask = at::ones({1, 90}, at::kBool);
    CHECK(selected_rows(in) == 0);
    in.row_mask = at::ones({1, 30}, at::kBool);
    CHECK(selected_rows(in) > 0);
  }
  SECTION("sink scores of NaN") {
    in.sink_scores = at::full({1, 90}, kNan, at::kFloat);
    CHECK(selected_rows(in) == 0);
  }
  SECTION("an infinite tau") {
    RedistributionRule rule;
    rule.tau = std::numeric_limits<float>::infinity();
    CHECK(selected_rows(in, rule) == 0);
  }
  SECTION("the only visual sink comes after a row") {
    // Rows are positions 60 to 89; two visual spans, and the only sink in the second, at
    // position 75.
    in.visual_mask = at::zeros({1, 90}, at::kBool);
    in.visual_mask.narrow(1, 10, 30).fill_(true);
    in.visual_mask.narrow(1, 74, 3).fill_(true);
    in.sink_scores = at::zeros({1, 90});
    in.sink_scores[0][75].fill_(21.0);
    RedistributionRule rule;
    rule.head_rule = HeadRule::kAll;
    CHECK(selected_rows(in, rule) == 4 * 13);  // positions 77 to 89
    const at::Tensor selected = attention_with_trace(in, rule).selected;
    CHECK_FALSE(selected.narrow(2, 0, 17).any().item<bool>());
    in.row_mask = at::ones({1, 30}, at::kBool);  // a row sees itself
    CHECK(selected_rows(in, rule) == 4 * 15);    // positions 75 to 89
  }
  CHECK(flips.wrong == 0);
}

TEST_CASE("ratio_epsilon counts the visual keys that a row sees", "[attention]") {
  // Equal scores. Row 12 sees 13 keys, 10 of them visual and one of these a sink:
  // r = 1 - 1/13 / (10/13 + 0.05 * 10) = 0.939; with all 36 visual keys it would be 0.970.
  AttentionInputs in = random_attention({1, 2, 1, 45, 45, 8}, at::kFloat, 385);
  in.query = at::zeros({1, 2, 45, 8});
  in.visual_mask = at::zeros({1, 45}, at::kBool);
  in.visual_mask.narrow(1, 0, 10).fill_(true);
  in.visual_mask.narrow(1, 14, 26).fill_(true);
  in.sink_scores = at::zeros({1, 45});
  in.sink_scores[0][4].fill_(20.0);
  RedistributionRule rule;
  rule.rho = 0.95f;
  rule.ratio_epsilon = 0.05f;
  Flips flips;
  check_against_oracle(in, rule, flips);
  CHECK(flips.wrong == 0);
  const at::Tensor selected = attention_with_trace(in, rule).selected;
  CHECK_FALSE(selected.narrow(2, 0, 40).any().item<bool>());
  CHECK(selected.narrow(2, 40, 5).all().item<bool>());
}

TEST_CASE("attention in its general form equals the oracle", "[attention]") {
  Flips flips;
  AttentionInputs in = random_attention({1, 3, 1, 12, 70, 24}, at::kFloat, 390);
  int cases = 0;
  for (ClassSet sources = 0; sources < 16; ++sources) {
    for (ClassSet targets = 0; targets < 16; ++targets) {
      if ((sources & targets) != 0) continue;
      RedistributionRule rule;
      rule.sources = sources;
      rule.targets = targets;
      rule.head_rule = cases % 2 == 0 ? HeadRule::kAll : HeadRule::kRatio;
      rule.ratio_epsilon = cases % 3 == 0 ? 0.0f : 1e-3f;
      INFO("sources " << int{sources} << ", targets " << int{targets});
      check_against_oracle(in, rule, flips);
      ++cases;
    }
  }
  CHECK(cases == 81);
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > 0);
}

TEST_CASE("attention takes parameters per sequence", "[attention]") {
  Flips flips;
  const AttentionInputs in = random_attention({4, 4, 2, 16, 120, 32}, at::kFloat, 400);
  const at::Tensor params = at::tensor({20.0f, 0.8f, 0.6f, 0.2f,  // the defaults
                                        5.0f, 0.3f, 1.0f, 0.0f,   //
                                        20.0f, 0.8f, 0.0f, 0.2f,  // off
                                        std::numeric_limits<float>::infinity(), 0.0f, 1.0f, 0.0f})
                                .view({4, 4});
  RedistributionRule unused;  // what params overrides is not read
  unused.tau = 3.0f;
  unused.p = 1.0f;
  check_against_oracle(in, unused, flips, params);
  const at::Tensor all = attention(in, unused, params);
  for (int b = 0; b < 4; ++b) {
    RedistributionRule rule;
    rule.tau = params[b][0].item<float>();
    rule.rho = params[b][1].item<float>();
    rule.p = params[b][2].item<float>();
    rule.min_visual_mass = params[b][3].item<float>();
    CHECK(same_bits(all[b], attention(in, rule)[b]));
  }
  CHECK(flips.wrong == 0);
  CHECK(flips.selected > 0);
}

// The same computation with PyTorch's operations, every result in the dtype of the inputs.
at::Tensor eager_attention(const AttentionInputs& in, const RedistributionRule& rule,
                           const at::Tensor& selected) {
  const at::ScalarType type = in.query.scalar_type();
  const std::int64_t group = in.query.size(1) / in.key.size(1), rows = in.query.size(2),
                     keys = in.key.size(2);
  const at::Tensor key = in.key.repeat_interleave(group, 1),
                   value = in.value.repeat_interleave(group, 1);
  const at::Tensor unseen = at::ones({rows, keys}, at::kBool).tril(keys - rows).logical_not();
  const at::Tensor scores = at::matmul(in.query, key.transpose(2, 3)).mul(in.scale);
  const at::Tensor probs =
      at::softmax(scores.masked_fill(unseen, -std::numeric_limits<float>::infinity()), -1);
  const at::Tensor sink = in.sink_scores.ge(rule.tau).view({-1, 1, 1, keys});
  const at::Tensor target = in.visual_mask.view({-1, 1, 1, keys}).logical_and(sink.logical_not());
  const at::Tensor zero = at::zeros({}, type);
  const at::Tensor omega = at::where(sink, probs, zero).sum(-1, true).mul(rule.p);
  const at::Tensor share = at::where(target, probs, zero).sum(-1, true);
  const at::Tensor moved = at::where(sink, probs * (1.0 - rule.p),
                                     at::where(target, probs * (omega / share + 1.0), probs));
  return at::matmul(at::where(selected.unsqueeze(-1), moved, probs), value);
}

TEST_CASE("attention in half types errs at most twice as much as PyTorch", "[attention]") {
  for (const at::ScalarType type : {at::kHalf, at::kBFloat16}) {
    for (const std::int64_t num_keys : {33, 640}) {
      const AttentionInputs in = random_attention({2, 8, 4, 24, num_keys, 64}, type, 410);
      const Traced actual = attention_with_trace(in, {});
      const std::vector<std::uint8_t> selection = bytes(actual.selected);
      const auto exact = reference::attention(problem_of(in, {}), &selection);
      const double error = largest_difference(actual.out, exact.out);
      const double eager_error =
          largest_difference(eager_attention(in, {}, actual.selected), exact.out);
      INFO(type << ", K " << num_keys << ": error " << error << ", PyTorch's " << eager_error);
      CHECK(error <= 2.0 * eager_error + unit(type) * actual.out.abs().max().item<double>());
      CHECK(actual.selected.any().item<bool>());
    }
  }
}

}  // namespace
}  // namespace libvar::test
