// sink_scores, rms_norm_sink_scores and add_rms_norm_sink_scores against PyTorch's own operations
// and the oracle. The builds of the kernel give the same bits, so most tests run one of them.

#include "unit/ops/builds.h"
#include "unit/ops/support.h"

namespace libvar::test {
namespace {

constexpr double kEps = 1e-6;

// transformers' LlamaRMSNorm.
at::Tensor eager_norm(const at::Tensor& hidden, const at::Tensor& weight, double eps) {
  const at::Tensor x = hidden.to(at::kFloat);
  const at::Tensor normed = x * at::rsqrt(x.pow(2).mean(-1, true) + eps);
  return weight * normed.to(hidden.scalar_type());
}

reference::RoundTo rounding_of(at::ScalarType type) {
  if (type == at::kHalf)
    return [](double x) {
      return static_cast<double>(static_cast<float>(static_cast<c10::Half>(static_cast<float>(x))));
    };
  if (type == at::kBFloat16)
    return [](double x) {
      return static_cast<double>(
          static_cast<float>(static_cast<c10::BFloat16>(static_cast<float>(x))));
    };
  return [](double x) { return static_cast<double>(static_cast<float>(x)); };
}

// Hidden states with a massive value in dimension 3 of some tokens, as large models have.
at::Tensor random_hidden(at::IntArrayRef sizes, at::ScalarType type,
                         const at::Generator& generator) {
  const at::Tensor hidden = at::randn(sizes, generator, at::kFloat);
  if (sizes.back() > 3)
    hidden.select(-1, 3).mul_(at::rand(sizes.slice(0, sizes.size() - 1), generator, at::kFloat)
                                  .lt(0.3)
                                  .mul(500.0)
                                  .add(1.0));
  return hidden.to(type);
}

// Largest difference in units in the last place of the larger magnitude.
double units_apart(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor a = actual.to(at::kDouble), e = expected.to(at::kDouble);
  const at::Tensor exponent = at::floor(at::log2(at::maximum(a.abs(), e.abs()).clamp_min(1e-30)));
  return ((a - e).abs() / at::exp2(exponent) / unit(actual.scalar_type())).max().item<double>();
}

TEST_CASE("sink_scores gives the numbers worked out by hand", "[norms]") {
  const at::Tensor hidden =
      at::tensor({3.0f, -4.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 2.0f}).view({2, 4});
  // Root mean squares 2.5 and 1.
  CHECK(largest_difference(sink_scores(hidden, at::tensor({0, 1}, at::kLong), 1e-12), {1.6, 0.0}) <=
        1e-6);
  CHECK(largest_difference(sink_scores(hidden, at::tensor({3}, at::kLong), 1e-12), {0.0, 2.0}) <=
        1e-6);
  CHECK(largest_difference(sink_scores(hidden, at::tensor({3}, at::kLong), 3.0), {0.0, 1.0}) <=
        1e-6);
  // Only one dimension holds energy: the largest phi that exists, sqrt(D).
  const at::Tensor single = at::zeros({1024});
  single[5].fill_(-7.0);
  CHECK(sink_scores(single, at::tensor({5}, at::kLong), 1e-12).item<double>() == Approx(32.0));
  CHECK(sink_scores(single, at::tensor({5}, at::kLong)).dim() == 0);
}

TEST_CASE("norms and sink scores equal the oracle and PyTorch at every size and dtype", "[norms]") {
  std::uint64_t seed = 200;
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t size : {1, 2, 7, 8, 31, 32, 33, 512, 576, 640, 1023, 4096}) {
      const at::Generator generator = seeded(++seed);
      INFO("seed " << seed << ", " << type << ", D " << size);
      const at::Tensor hidden = random_hidden({2, 5, size}, type, generator);
      const at::Tensor weight = at::randn({size}, generator, at::kFloat).add(1.0).to(type);
      const at::Tensor sink_dims =
          size > 3 ? at::tensor({size - 1, std::int64_t{3}}, at::kLong) : at::zeros({1}, at::kLong);
      const std::vector<std::int64_t> dims(
          sink_dims.const_data_ptr<std::int64_t>(),
          sink_dims.const_data_ptr<std::int64_t>() + sink_dims.numel());
      const auto round = rounding_of(type);
      const auto expected =
          reference::rms_norm(doubles(hidden), {}, doubles(weight), dims, size, kEps, round);
      const auto [normed, phi] = rms_norm_sink_scores(hidden, weight, sink_dims, kEps);
      REQUIRE(phi.scalar_type() == at::kFloat);
      REQUIRE(normed.scalar_type() == type);
      for (std::size_t i = 0; i < expected.phi.size(); ++i) {
        CHECK(std::fabs(doubles(phi)[i] - expected.phi[i]) <= kSinkScoreBound * expected.phi[i]);
      }
      CHECK(same_bits(phi, sink_scores(hidden, sink_dims, kEps)));
      // Two roundings: one unit from the first can become up to two of the product.
      CHECK(units_apart(normed,
                        at::tensor(expected.normed, at::kDouble).view(hidden.sizes()).to(type)) <=
            4.0);
      CHECK(units_apart(normed, eager_norm(hidden, weight, kEps)) <= 4.0);
      if (type != at::kFloat) {  // the float in between is close enough that nearly every element
                                 // rounds the same way
        CHECK(normed.eq(eager_norm(hidden, weight, kEps)).to(at::kDouble).mean().item<double>() >=
              0.99);
      }

      const at::Tensor delta = random_hidden({2, 5, size}, type, generator);
      at::Tensor residual = hidden.clone();
      const auto [sum_normed, sum_phi] =
          add_rms_norm_sink_scores(residual, delta, weight, sink_dims, kEps);
      CHECK(same_bits(residual, hidden + delta));
      const auto [again_normed, again_phi] =
          rms_norm_sink_scores(residual, weight, sink_dims, kEps);
      CHECK(same_bits(sum_normed, again_normed));
      CHECK(same_bits(sum_phi, again_phi));

      with_each_build([&, &normed = normed, &phi = phi, &sum_normed = sum_normed] {
        const auto [own_normed, own_phi] = rms_norm_sink_scores(hidden, weight, sink_dims, kEps);
        CHECK(same_bits(own_normed, normed));
        CHECK(same_bits(own_phi, phi));
        at::Tensor own_residual = hidden.clone();
        const auto own_sum = add_rms_norm_sink_scores(own_residual, delta, weight, sink_dims, kEps);
        CHECK(same_bits(own_residual, residual));
        CHECK(same_bits(std::get<0>(own_sum), sum_normed));
      });
    }
  }
}

TEST_CASE("the norm rounds before it multiplies by the weight", "[norms]") {
  // x / rms is 1.0000... for equal elements; 1 + 2^-9 is not a bfloat16, so the order of rounding
  // shows.
  const at::Generator generator = seeded(21);
  const at::Tensor hidden = at::randn({64, 128}, generator, at::kFloat).to(at::kBFloat16);
  const at::Tensor weight = at::randn({128}, generator, at::kFloat).to(at::kBFloat16);
  const at::Tensor actual =
      std::get<0>(rms_norm_sink_scores(hidden, weight, at::empty({0}, at::kLong), kEps));
  const at::Tensor x = hidden.to(at::kFloat);
  const at::Tensor late =
      (weight.to(at::kFloat) * x * at::rsqrt(x.pow(2).mean(-1, true) + kEps)).to(at::kBFloat16);
  CHECK(actual.ne(eager_norm(hidden, weight, kEps)).sum().item<std::int64_t>() <= 10);
  CHECK(actual.ne(late).sum().item<std::int64_t>() > 500);
}

TEST_CASE("the norms take no sink dimensions and give phi 0", "[norms]") {
  const at::Tensor hidden = at::randn({3, 16}, seeded(22), at::kFloat);
  const at::Tensor none = at::empty({0}, at::kLong);
  const auto [normed, phi] = rms_norm_sink_scores(hidden, at::ones({16}), none, kEps);
  CHECK(same_bits(phi, at::zeros({3})));
  CHECK(units_apart(normed, eager_norm(hidden, at::ones({16}), kEps)) <= 2.0);
}

TEST_CASE("the norms read rows with any leading strides", "[norms]") {
  const at::Generator generator = seeded(23);
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor wide = random_hidden({4, 3, 2, 50}, type, generator);
    const at::Tensor strided = wide.permute({2, 0, 1, 3}).narrow(3, 5, 40);
    const at::Tensor weight = at::rand({40}, generator, at::kFloat).to(type);
    const at::Tensor sink_dims = at::tensor({1, 39}, at::kLong);
    const auto [normed, phi] = rms_norm_sink_scores(strided, weight, sink_dims, kEps);
    const auto [plain_normed, plain_phi] =
        rms_norm_sink_scores(strided.contiguous(), weight, sink_dims, kEps);
    CHECK(same_bits(normed, plain_normed));
    CHECK(same_bits(phi, plain_phi));
    CHECK(normed.is_contiguous());

    const at::Tensor delta =
        at::randn({4, 3, 2, 40}, generator, at::kFloat).to(type).permute({2, 0, 1, 3});
    const at::Tensor sum = strided + delta;
    const at::Tensor before = wide.clone();
    at::Tensor residual = strided;
    add_rms_norm_sink_scores(residual, delta, weight, sink_dims, kEps);
    CHECK(same_bits(strided, sum));
    CHECK(same_bits(wide.narrow(3, 0, 5), before.narrow(3, 0, 5)));
    CHECK(same_bits(wide.narrow(3, 45, 5), before.narrow(3, 45, 5)));
  }
}

TEST_CASE("phi of a long row stays accurate", "[norms]") {
  const std::int64_t size = (1 << 20) + 5;
  // One number again and again: what rounding does to it adds up instead of evening out.
  const at::Tensor hidden = at::full({size}, 0.7f);
  const double phi = sink_scores(hidden, at::tensor({5}, at::kLong), 1e-12).item<double>();
  INFO("phi " << phi);
  CHECK(std::fabs(phi - 1.0) <= kSinkScoreBound);
}

TEST_CASE("a NaN stays in its row of the norm", "[norms]") {
  const at::Tensor sink_dims = at::tensor({4}, at::kLong);
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor ones = at::ones({45}, type);
    const at::Tensor hidden = at::randn({3, 45}, seeded(24), at::kFloat).to(type);
    const auto [clean, clean_phi] = rms_norm_sink_scores(hidden, ones, sink_dims, kEps);
    for (const std::int64_t element : {7, 8, 44}) {  // both halves of a group, the last one
      at::Tensor spoilt = hidden.clone();
      spoilt[1][element].fill_(kNan);
      const auto [normed, phi] = rms_norm_sink_scores(spoilt, ones, sink_dims, kEps);
      INFO(type << ", element " << element);
      CHECK(normed[1].isnan().all().item<bool>());
      CHECK(phi[1].isnan().item<bool>());
      for (const int row : {0, 2}) {
        CHECK(same_bits(normed[row], clean[row]));
        CHECK(same_bits(phi[row], clean_phi[row]));
      }
    }
  }
}

TEST_CASE("no NaN becomes a number when it is rounded to bfloat16", "[norms]") {
  // All NaNs there are: rounding may not carry out of their bits.
  std::vector<std::int16_t> bits;
  for (int sign = 0; sign < 2; ++sign) {
    for (int payload = 1; payload < 128; ++payload) {
      bits.push_back(static_cast<std::int16_t>((sign << 15) | 0x7f80 | payload));
    }
  }
  const at::Tensor hidden = at::tensor(bits, at::kShort)
                                .view(at::kBFloat16)
                                .view({static_cast<std::int64_t>(bits.size()), 1})
                                .expand({-1, 3})
                                .contiguous();
  REQUIRE(hidden.isnan().all().item<bool>());
  const at::Tensor none = at::empty({0}, at::kLong);
  with_each_build([&] {
    at::Tensor residual = hidden.clone();
    const auto [normed, phi] = add_rms_norm_sink_scores(residual, at::zeros_like(hidden),
                                                        at::ones({3}, at::kBFloat16), none, kEps);
    CHECK(residual.isnan().all().item<bool>());
    CHECK(normed.isnan().all().item<bool>());
  });
}

TEST_CASE("the norms take empty tensors", "[norms]") {
  const at::Tensor hidden = at::empty({0, 16});
  const auto [normed, phi] =
      rms_norm_sink_scores(hidden, at::ones({16}), at::zeros({1}, at::kLong), kEps);
  CHECK(normed.sizes() == hidden.sizes());
  CHECK(phi.sizes() == at::IntArrayRef({0}));
}

}  // namespace
}  // namespace libvar::test
