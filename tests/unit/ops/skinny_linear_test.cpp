// skinny_linear against the oracle, in every build of the kernel.

#include "reference/linear_oracle.h"

#include <ATen/Parallel.h>

#include "unit/ops/builds.h"
#include "unit/ops/support.h"

namespace libvar::test {
namespace {

struct Problem {
  at::Tensor input, weight;
  std::optional<at::Tensor> bias;
};

Problem random_problem(std::int64_t rows, std::int64_t out_features, std::int64_t in_features,
                       at::ScalarType type, bool has_bias, std::uint64_t seed) {
  const at::Generator generator = seeded(seed);
  Problem problem;
  problem.input = at::randn({rows, in_features}, generator, at::kFloat).to(type);
  problem.weight = at::randn({out_features, in_features}, generator, at::kFloat).to(type);
  if (has_bias) problem.bias = at::randn({out_features}, generator, at::kFloat).to(type);
  return problem;
}

// Largest error over what is allowed: the sums' bound, and half a unit of the rounding to the
// dtype.
double error_share(const at::Tensor& actual, const Problem& problem) {
  const auto expected =
      reference::linear(doubles(problem.input), doubles(problem.weight),
                        problem.bias.has_value() ? doubles(*problem.bias) : std::vector<double>(),
                        problem.weight.size(1));
  const std::vector<double> values = doubles(actual);
  REQUIRE(values.size() == expected.output.size());
  const double half_unit = unit(actual.scalar_type()) / 2;
  double worst = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double allowed = kLinearBound * expected.magnitude[i] +
                           1.01 * half_unit * std::fabs(expected.output[i]) + 1e-30;
    const double share = std::fabs(values[i] - expected.output[i]) / allowed;
    if (!(share <= worst)) worst = share;
    if (std::isnan(share)) return share;
  }
  return worst;
}

TEST_CASE("skinny_linear gives the numbers worked out by hand", "[linear]") {
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor input =
        at::tensor({1.0f, -2.0f, 0.5f, 4.0f, 0.0f, 8.0f}).view({2, 3}).to(type);
    const at::Tensor weight =
        at::tensor({1.0f, 1.0f, 1.0f, 0.0f, 0.25f, -2.0f}).view({2, 3}).to(type);
    const at::Tensor bias = at::tensor({10.0f, -1.0f}).to(type);
    CHECK(doubles(skinny_linear(input, weight)) == std::vector<double>{-0.5, -1.5, 12.0, -16.0});
    CHECK(doubles(skinny_linear(input, weight, bias)) ==
          std::vector<double>{9.5, -2.5, 22.0, -17.0});
  }
}

TEST_CASE("skinny_linear equals the oracle at every size, dtype and build", "[linear]") {
  std::uint64_t seed = 900;
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {1, 7, 31, 32, 33, 63, 64, 65, 576, 1023, 4097}) {
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        const Problem problem = random_problem(rows, 19, in_features, type, rows % 2 == 0, ++seed);
        INFO("seed " << seed << ", " << type << ", M " << rows << ", K " << in_features);
        const at::Tensor expected = skinny_linear(problem.input, problem.weight, problem.bias);
        REQUIRE(expected.sizes() == at::IntArrayRef({rows, 19}));
        with_each_build([&] {
          const at::Tensor actual = skinny_linear(problem.input, problem.weight, problem.bias);
          CHECK(actual.scalar_type() == type);
          CHECK(error_share(actual, problem) <= 1.0);
          // Where the processor multiplies bfloat16, the order of the sums differs.
          if (type != at::kBFloat16) CHECK(same_bits(actual, expected));
        });
      }
    }
  }
}

TEST_CASE("skinny_linear is exact where inputs do not stay in the first cache", "[linear]") {
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {3000, 11008}) {
      const Problem problem = random_problem(1, 21, in_features, type, true, 950);
      INFO(type << ", K " << in_features);
      with_each_build([&] {
        CHECK(error_share(skinny_linear(problem.input, problem.weight, problem.bias), problem) <=
              1.0);
      });
    }
  }
}

TEST_CASE("a row of skinny_linear does not depend on other rows, threads or neighbours",
          "[linear]") {
  const int threads = at::get_num_threads();
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {200, 11008}) {
      const Problem problem = random_problem(8, 43, in_features, type, true, 960);
      INFO(type << ", K " << in_features);
      with_each_build([&] {
        const at::Tensor all = skinny_linear(problem.input, problem.weight, problem.bias);
        for (std::int64_t rows = 1; rows < 8; ++rows) {
          CHECK(same_bits(
              skinny_linear(problem.input.narrow(0, 8 - rows, rows), problem.weight, problem.bias),
              all.narrow(0, 8 - rows, rows)));
        }
        CHECK(same_bits(skinny_linear(problem.input[3], problem.weight.narrow(0, 5, 30)),
                        skinny_linear(problem.input[3], problem.weight).narrow(0, 5, 30)));
        at::set_num_threads(1);
        CHECK(same_bits(skinny_linear(problem.input, problem.weight, problem.bias), all));
        at::set_num_threads(threads);
      });
    }
  }
}

TEST_CASE("skinny_linear takes any strides and leading dimensions", "[linear]") {
  for (const at::ScalarType type : kDtypes) {
    const at::Generator generator = seeded(970);
    const at::Tensor input =
        at::randn({50, 2, 3}, generator, at::kFloat).to(type).permute({1, 2, 0});
    const at::Tensor weight =
        at::randn({30, 90}, generator, at::kFloat).to(type).narrow(0, 3, 20).narrow(1, 7, 50);
    const at::Tensor bias = at::randn({40}, generator, at::kFloat).to(type).slice(0, 0, 40, 2);
    const at::Tensor actual = skinny_linear(input, weight, bias);
    CHECK(actual.sizes() == at::IntArrayRef({2, 3, 20}));
    CHECK(actual.is_contiguous());
    CHECK(same_bits(actual,
                    skinny_linear(input.contiguous(), weight.contiguous(), bias.contiguous())));
    CHECK(error_share(actual.view({6, 20}), {input.reshape({6, 50}), weight, bias}) <= 1.0);
    CHECK(skinny_linear(input[0][1], weight, bias).sizes() == at::IntArrayRef({20}));
    CHECK(skinny_linear(input.narrow(0, 0, 0), weight).sizes() == at::IntArrayRef({0, 3, 20}));
    CHECK(skinny_linear(input, weight.narrow(0, 0, 0)).sizes() == at::IntArrayRef({2, 3, 0}));
  }
}

TEST_CASE("skinny_linear stays accurate in a long row", "[linear]") {
  const std::int64_t size = (1 << 20) + 5;
  // One number again and again: what rounding does to it adds up instead of evening out.
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    const Problem problem = {at::full({1, size}, 0.7, type), at::full({1, size}, 0.9, type), {}};
    with_each_build(
        [&] { CHECK(error_share(skinny_linear(problem.input, problem.weight), problem) <= 1.0); });
  }
}

TEST_CASE("a NaN stays in its row and in its weight row", "[linear]") {
  for (const at::ScalarType type : kDtypes) {
    const Problem problem = random_problem(3, 10, 45, type, false, 980);
    with_each_build([&] {
      const at::Tensor clean = skinny_linear(problem.input, problem.weight);
      for (const std::int64_t element : {0, 31, 44}) {
        at::Tensor spoilt = problem.input.clone();
        spoilt[1][element].fill_(kNan);
        const at::Tensor out = skinny_linear(spoilt, problem.weight);
        CHECK(out[1].isnan().all().item<bool>());
        CHECK(same_bits(out[0], clean[0]));
        CHECK(same_bits(out[2], clean[2]));
        at::Tensor weight = problem.weight.clone();
        weight[4][element].fill_(kNan);
        const at::Tensor column = skinny_linear(problem.input, weight);
        CHECK(column.isnan().sum().item<std::int64_t>() == 3);
        CHECK(column.select(1, 4).isnan().all().item<bool>());
      }
    });
  }
}

TEST_CASE("skinny_linear reads nothing beside its weight rows", "[linear]") {
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {37, 3001}) {
      const Problem problem = random_problem(2, 9, in_features, type, false, 990);
      at::Tensor wide = at::full({9, in_features + 40}, kNan, problem.weight.options());
      wide.narrow(1, 20, in_features).copy_(problem.weight);
      with_each_build([&] {
        CHECK(same_bits(skinny_linear(problem.input, wide.narrow(1, 20, in_features)),
                        skinny_linear(problem.input, problem.weight)));
      });
    }
  }
}

TEST_CASE("skinny_linear of an int8 weight equals the oracle in every build", "[linear]") {
  std::uint64_t seed = 1000;
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {1, 15, 31, 33, 64, 129, 576, 4097}) {
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        const at::Generator generator = seeded(++seed);
        INFO("seed " << seed << ", " << type << ", M " << rows << ", K " << in_features);
        Problem problem = random_problem(rows, 19, in_features, type, rows % 2 == 0, seed);
        const at::Tensor wide =
            at::randint(-127, 128, {19, in_features + 5}, generator, at::kLong).to(at::kChar);
        const at::Tensor weight = wide.narrow(1, 3, in_features);
        const at::Tensor scale = at::rand({19}, generator, at::kFloat).mul(0.01);
        problem.weight = weight.to(at::kDouble) * scale.unsqueeze(1);
        const at::Tensor expected = skinny_linear(problem.input, weight, problem.bias, scale);
        with_each_build([&] {
          const at::Tensor actual = skinny_linear(problem.input, weight, problem.bias, scale);
          CHECK(actual.scalar_type() == type);
          CHECK(error_share(actual, problem) <= 1.0);
          CHECK(same_bits(actual, expected));
          CHECK(same_bits(skinny_linear(problem.input[rows - 1], weight, problem.bias, scale),
                          actual[rows - 1]));
        });
      }
    }
  }
}

// The gated pair from two linear maps, and the bound that its roundings leave: a map may fall to
// the other side of a tie, which everything behind it follows.
double swiglu_error_share(const at::Tensor& actual, const Problem& gate, const Problem& up) {
  const at::ScalarType type = actual.scalar_type();
  const auto exact = [](const Problem& map) {
    return reference::linear(doubles(map.input), doubles(map.weight),
                             map.bias.has_value() ? doubles(*map.bias) : std::vector<double>(),
                             map.weight.size(1));
  };
  const auto first = exact(gate), second = exact(up);
  const auto round = [type](double x) {
    return at::scalar_tensor(x, at::kFloat).to(type).item<double>();
  };
  const auto expected = reference::swiglu(first, second, round);
  const std::vector<double> values = doubles(actual);
  REQUIRE(values.size() == expected.output.size());
  double worst = 0.0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const auto error_of = [&](const reference::LinearResult& map) {
      return kLinearBound * map.magnitude[i] + unit(type) * std::fabs(map.output[i]);
    };
    const double allowed = expected.gate_slope[i] * error_of(first) +
                           expected.up_slope[i] * error_of(second) +
                           2 * unit(type) * std::fabs(expected.output[i]) + 1e-30;
    const double share = std::fabs(values[i] - expected.output[i]) / allowed;
    if (!(share <= worst)) worst = share;
    if (std::isnan(share)) return share;
  }
  return worst;
}

TEST_CASE("skinny_swiglu equals the oracle, and its operators bit for bit, in every build",
          "[linear]") {
  std::uint64_t seed = 1100;
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t in_features : {1, 33, 64, 577}) {
      for (const std::int64_t rows : {1, 2, 8}) {
        ++seed;
        INFO("seed " << seed << ", " << type << ", M " << rows << ", K " << in_features);
        Problem gate = random_problem(rows, 19, in_features, type, rows % 2 == 0, seed);
        Problem up = random_problem(rows, 19, in_features, type, rows % 2 == 0, seed + 1000);
        up.input = gate.input;
        gate.weight = gate.weight.div(std::sqrt(static_cast<double>(in_features)));
        with_each_build([&] {
          const at::Tensor actual =
              skinny_swiglu(gate.input, gate.weight, up.weight, gate.bias, up.bias);
          CHECK(actual.sizes() == at::IntArrayRef({rows, 19}));
          CHECK(swiglu_error_share(actual, gate, up) <= 1.0);
          CHECK(same_bits(actual, at::silu(skinny_linear(gate.input, gate.weight, gate.bias))
                                      .mul_(skinny_linear(up.input, up.weight, up.bias))));
        });
      }
    }
  }
}

TEST_CASE("skinny_swiglu of int8 weights equals its operators", "[linear]") {
  const at::Generator generator = seeded(1200);
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor input = at::randn({2, 2, 40}, generator, at::kFloat).to(type);
    const at::Tensor both = at::randint(-127, 128, {38, 40}, generator, at::kLong).to(at::kChar);
    const at::Tensor scales = at::rand({38}, generator, at::kFloat).mul(0.01);
    // Halves of one buffer, as a model on a GPU has them.
    const at::Tensor gate = both.narrow(0, 0, 19), up = both.narrow(0, 19, 19);
    const at::Tensor gate_scale = scales.narrow(0, 0, 19), up_scale = scales.narrow(0, 19, 19);
    const at::Tensor up_bias = at::randn({19}, generator, at::kFloat).to(type);
    CHECK(same_bits(skinny_swiglu(input, gate, up, std::nullopt, up_bias, gate_scale, up_scale),
                    at::silu(skinny_linear(input, gate, std::nullopt, gate_scale))
                        .mul_(skinny_linear(input, up, up_bias, up_scale))));
  }
}

TEST_CASE("skinny_swiglu gives the numbers worked out by hand", "[linear]") {
  const at::Tensor input = at::tensor({1.0f, -2.0f}).view({1, 2});
  const at::Tensor gate = at::tensor({0.0f, 0.0f, 50.0f, 0.0f, 0.0f, 50.0f}).view({3, 2});
  const at::Tensor up = at::tensor({1.0f, 1.0f, 3.0f, 0.0f, 1.0f, 0.0f}).view({3, 2});
  // silu(0) is 0, of a large number that number, of a large negative one nothing.
  CHECK(doubles(skinny_swiglu(input, gate, up)) == std::vector<double>{0.0, 150.0, -0.0});
  CHECK(skinny_swiglu(input.narrow(0, 0, 0), gate, up).sizes() == at::IntArrayRef({0, 3}));
}

TEST_CASE("a scale belongs to its own row of the int8 weight", "[linear]") {
  const at::Tensor weight =
      at::tensor({127, -127, 1, 0, 3, -4}, at::kLong).to(at::kChar).view({3, 2});
  const at::Tensor input = at::tensor({1.0f, 2.0f}).view({1, 2});
  const at::Tensor scales = at::tensor({0.5f, 9.0f, 10.0f, 9.0f, 2.0f, 9.0f}).slice(0, 0, 6, 2);
  const at::Tensor bias = at::tensor({0.25f, 0.0f, -1.0f});
  CHECK(doubles(skinny_linear(input, weight, bias, scales)) ==
        std::vector<double>{-63.25, 10.0, -11.0});
}

}  // namespace
}  // namespace libvar::test
