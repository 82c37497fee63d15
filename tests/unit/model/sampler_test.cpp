#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "catch.h"
#include "generate/sampler.h"
#include "libvar/error.h"
#include "unit/model/tiny_decoder.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

GenerationParams sampling(double temperature, std::int64_t top_k = 0, double top_p = 1.0,
                          std::uint64_t seed = 0) {
  GenerationParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.seed = seed;
  return params;
}

/// Chooses one token after another.
class Sampler {
 public:
  explicit Sampler(const GenerationParams& params) : params_(params) {}

  std::int64_t operator()(const at::Tensor& logits) {
    return choose_token(logits, params_, draws_++);
  }

 private:
  GenerationParams params_;
  std::uint64_t draws_ = 0;
};

std::vector<double> frequencies(const GenerationParams& params, const at::Tensor& logits,
                                int draws) {
  Sampler sampler(params);
  std::vector<double> result(static_cast<std::size_t>(logits.numel()), 0.0);
  for (int i = 0; i < draws; ++i) result[static_cast<std::size_t>(sampler(logits))] += 1.0 / draws;
  return result;
}

}  // namespace

TEST_CASE("greedy takes the lowest id of the largest logits", "[sampler]") {
  Sampler greedy(sampling(0.0));
  CHECK(greedy(at::tensor({1.0, 3.0, 2.0, 3.0, 3.0}, at::kFloat)) == 1);
  CHECK(greedy(at::full({32064}, 0.5, at::kBFloat16)) == 0);
  at::Tensor wide = at::full({32064}, 0.5, at::kHalf);
  wide[17000] = 0.75;
  wide[31000] = 0.75;
  CHECK(greedy(wide) == 17000);
}

TEST_CASE("sampling draws each token with its softmax probability", "[sampler]") {
  const std::vector<double> values{0.5, -1.0, 2.0, 0.0};
  const at::Tensor logits = at::tensor(values, at::kFloat);
  constexpr int kDraws = 40000;
  for (const double temperature : {0.5, 1.0, 2.0}) {
    const std::vector<double> found = frequencies(sampling(temperature, 0, 1.0, 3), logits, kDraws);
    double total = 0;
    for (const double value : values) total += std::exp(value / temperature);
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double expected = std::exp(values[i] / temperature) / total;
      CAPTURE(temperature, i, found[i], expected);
      CHECK(std::abs(found[i] - expected) <= 5.0 * std::sqrt(expected * (1 - expected) / kDraws));
    }
  }
}

TEST_CASE("top_k keeps the largest logits and those equal to the last of them", "[sampler]") {
  const at::Tensor logits = at::tensor({1.0, 4.0, 3.0, 3.0, 0.0}, at::kFloat);
  const std::vector<double> found = frequencies(sampling(1.0, 2), logits, 4000);
  CHECK(found[0] == 0);
  CHECK(found[4] == 0);
  CHECK(found[1] > 0.5);
  CHECK(found[2] > 0);
  CHECK(found[3] > 0);
  CHECK(frequencies(sampling(1.0, 1), logits, 100)[1] == Approx(1.0));
  CHECK(frequencies(sampling(1.0, 99), logits, 4000)[4] > 0);
}

TEST_CASE("top_p keeps the smallest set that reaches it, after temperature and top_k",
          "[sampler]") {
  // Probabilities 0.5, 0.3, 0.15, 0.05 in another order.
  const at::Tensor logits =
      at::tensor({std::log(0.15), std::log(0.5), std::log(0.05), std::log(0.3)}, at::kFloat);
  std::vector<double> found = frequencies(sampling(1.0, 0, 0.7), logits, 20000);
  CHECK(found[0] == 0);
  CHECK(found[2] == 0);
  CHECK(found[1] == Approx(0.625).margin(0.02));
  found = frequencies(sampling(1.0, 0, 0.01), logits, 100);
  CHECK(found[1] == Approx(1.0));
  // top_k 3 renormalises to 0.526, 0.316, 0.158: two of them reach 0.84, but not 0.85.
  CHECK(frequencies(sampling(1.0, 3, 0.84), logits, 5000)[0] == 0);
  CHECK(frequencies(sampling(1.0, 3, 0.85), logits, 5000)[0] > 0);
  // A temperature of 0.5 squares them: 0.685, 0.247, ...
  CHECK(frequencies(sampling(0.5, 0, 0.65), logits, 5000)[3] == 0);
}

TEST_CASE("a seed decides every draw", "[sampler]") {
  const at::Tensor logits = at::full({1000}, 0.0, at::kFloat);
  const auto draws = [&](std::uint64_t seed) {
    Sampler sampler(sampling(1.0, 0, 1.0, seed));
    std::vector<std::int64_t> result;
    for (int i = 0; i < 20; ++i) result.push_back(sampler(logits));
    return result;
  };
  CHECK(draws(5) == draws(5));
  CHECK(draws(5) != draws(6));
  const std::vector<std::int64_t> five = draws(5), six = draws(6);
  CHECK(std::vector<std::int64_t>(five.begin() + 1, five.end()) !=
        std::vector<std::int64_t>(six.begin(), six.end() - 1));
  CHECK(std::set<std::int64_t>(five.begin(), five.end()).size() > 15);
  // Pinned: the stream must stay what it is, or old seeds would mean other answers.
  CHECK(uniform_draw(0, 0) == 0.6524484863740322);
  double mean = 0;
  for (std::uint64_t n = 0; n < 10000; ++n) {
    const double u = uniform_draw(42, n);
    REQUIRE((u >= 0.0 && u < 1.0));
    mean += u / 10000;
  }
  CHECK(mean == Approx(0.5).margin(0.015));
}

TEST_CASE("no token is chosen from logits that are not finite", "[sampler]") {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const GenerationParams& params :
       {sampling(0.0), sampling(1.0), sampling(1.0, 1), sampling(1.0, 0, 0.5)}) {
    const auto choose = [&](const std::vector<double>& logits) {
      return choose_token(at::tensor(logits, at::kFloat), params, 0);
    };
    CHECK(choose({0.0, std::nan("")}) == -1);
    CHECK(choose({-infinity, -infinity}) == -1);
    CHECK(choose({infinity, 0.0}) == -1);
    CHECK(choose({-infinity, 0.0, -infinity}) == 1);
  }
}

TEST_CASE("sequences with settings of their own choose as they would alone", "[sampler]") {
  const std::vector<GenerationParams> params = {sampling(0.0), sampling(1.0, 0, 1.0, 4),
                                                sampling(0.7, 3, 1.0, 5), sampling(1.3, 0, 0.6, 6),
                                                sampling(1.0, 900, 0.9, 7)};
  const at::Tensor logits = random_tensor({5, 300}, 21, 3.0);
  const ChoiceSettings settings = choice_settings(params, 300);
  for (std::uint64_t draw = 0; draw < 50; ++draw) {
    std::vector<double> uniforms;
    for (const GenerationParams& one : params) uniforms.push_back(uniform_draw(one.seed, draw));
    const at::Tensor chosen = choose_tokens(logits, settings, at::tensor(uniforms, at::kDouble),
                                            ChoiceMethod::kDrawFromBest);
    for (std::int64_t i = 0; i < 5; ++i) {
      CHECK(chosen[i].item<std::int64_t>() ==
            choose_token(logits[i], params[static_cast<std::size_t>(i)], draw));
    }
  }
}

TEST_CASE("a uniform number at the end of the scale draws the last possible token", "[sampler]") {
  const at::Tensor logits = at::tensor({0.0, 1.0, -1000000.0}, at::kFloat).unsqueeze(0);
  for (const ChoiceMethod method : {ChoiceMethod::kDraw, ChoiceMethod::kDrawFromBest}) {
    const auto draw = [&](double uniform) {
      return choose_tokens(logits, choice_settings({sampling(1.0)}, 3),
                           at::tensor({uniform}, at::kDouble), method)
          .item<std::int64_t>();
    };
    CHECK(draw(0.0) == 0);
    CHECK(draw(1.0) == 1);
  }
}

TEST_CASE("generation parameters out of range are named", "[sampler]") {
  using Catch::Matchers::Contains;
  GenerationParams params;
  params.max_new_tokens = 0;
  CHECK_THROWS_WITH(validate(params), Contains("max_new_tokens") && Contains("0"));
  CHECK_THROWS_WITH(validate(sampling(std::nan(""))), Contains("temperature"));
  CHECK_THROWS_WITH(validate(sampling(-1.0)), Contains("temperature"));
  CHECK_THROWS_WITH(validate(sampling(1.0, -1)), Contains("top_k"));
  for (const double top_p : {0.0, 1.5, -0.1})
    CHECK_THROWS_WITH(validate(sampling(1.0, 0, top_p)), Contains("top_p"));
  CHECK_NOTHROW(validate(sampling(0.7, 50, 0.9)));
}
