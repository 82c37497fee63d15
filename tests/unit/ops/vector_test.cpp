// The vectors beneath the CPU kernels, in every build that this processor runs: conversions against
// c10's for all values, exp against double precision, sums.

#include <bit>
#include <cmath>

#include "unit/ops/support.h"
#include "unit/ops/vector_probe.h"

namespace libvar::test {
namespace {

// Calls f(name, i) for every build that this processor can run.
template <typename F>
void for_each_build(F&& f) {
  for (int i = 0; i <= static_cast<int>(cpu::detected_capability()); ++i) {
    INFO("build " << i);
    f(i);
  }
}

bool same_float(float a, float b) {
  return (std::isnan(a) && std::isnan(b)) ||
         std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}

constexpr int kNumHalves = 1 << 16;

TEST_CASE("every half and bfloat16 becomes the float that c10 makes of it", "[vector]") {
  std::vector<cpu::Half> halves(kNumHalves);
  std::vector<cpu::Bfloat16> bfloats(kNumHalves);
  for (int i = 0; i < kNumHalves; ++i) {
    halves[i].bits = bfloats[i].bits = static_cast<std::uint16_t>(i);
  }
  for_each_build([&](int build) {
    std::vector<float> from_half(kNumHalves), from_bfloat(kNumHalves);
    LIBVAR_CPU_BUILDS(probe_load_half).builds[build](from_half.data(), halves.data(), kNumHalves);
    LIBVAR_CPU_BUILDS(probe_load_bfloat16)
        .builds[build](from_bfloat.data(), bfloats.data(), kNumHalves);
    int wrong = 0;
    for (int i = 0; i < kNumHalves; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      wrong += !same_float(from_half[i], c10::Half(bits, c10::Half::from_bits()));
      wrong += !same_float(from_bfloat[i], c10::BFloat16(bits, c10::BFloat16::from_bits()));
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("floats are rounded to half types as c10 rounds them", "[vector]") {
  // All bit patterns a prime apart: every exponent, ties and their neighbours among them.
  std::vector<float> values;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 9973) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  }
  for (std::uint32_t bits = 0; bits < (1u << 16); ++bits) {
    for (const std::uint32_t low : {0x0u, 0xfffu, 0x1000u, 0x1001u, 0x3000u, 0x7fffu, 0x8000u}) {
      values.push_back(std::bit_cast<float>((bits << 16) | low));
    }
  }
  const auto count = static_cast<std::int64_t>(values.size());
  for_each_build([&](int build) {
    std::vector<cpu::Half> halves(values.size());
    std::vector<cpu::Bfloat16> bfloats(values.size());
    LIBVAR_CPU_BUILDS(probe_store_half).builds[build](halves.data(), values.data(), count);
    LIBVAR_CPU_BUILDS(probe_store_bfloat16).builds[build](bfloats.data(), values.data(), count);
    int wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      const c10::Half half(values[i]);
      const c10::BFloat16 bfloat(values[i]);
      wrong += !same_float(half, c10::Half(halves[i].bits, c10::Half::from_bits()));
      wrong += !same_float(bfloat, c10::BFloat16(bfloats[i].bits, c10::BFloat16::from_bits()));
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("partial vectors touch no element past their count", "[vector]") {
  const std::vector<float> values(64, 3.0f);
  for_each_build([&](int build) {
    for (std::int64_t count = 0; count <= 40; ++count) {
      std::vector<cpu::Half> halves(64, cpu::Half{0x7bff});
      LIBVAR_CPU_BUILDS(probe_store_half).builds[build](halves.data(), values.data(), count);
      int written = 0;
      for (const cpu::Half half : halves) written += half.bits == 0x4200;
      CHECK(written == count);
      CHECK(halves[static_cast<std::size_t>(count)].bits == 0x7bff);
    }
  });
}

TEST_CASE("exp of what is not positive is within two units in the last place", "[vector]") {
  std::vector<float> values = {0.0f,
                               -0.0f,
                               -87.3f,
                               -87.4f,
                               -1e30f,
                               -std::numeric_limits<float>::infinity(),
                               std::numeric_limits<float>::quiet_NaN()};
  for (int i = 0; values.size() % 16 != 0 || i < 200000; ++i) {
    values.push_back(-87.3f * static_cast<float>(i % 200001) / 200000.0f);
  }
  for_each_build([&](int build) {
    std::vector<float> results(values.size());
    LIBVAR_CPU_BUILDS(probe_exp).builds[build](results.data(), values.data(),
                                               static_cast<std::int64_t>(values.size()));
    CHECK(results[0] == 1.0f);
    CHECK(results[1] == 1.0f);
    CHECK(results[3] == 0.0f);
    CHECK(results[4] == 0.0f);
    CHECK(results[5] == 0.0f);
    CHECK(std::isnan(results[6]));
    double worst = 0.0;
    for (std::size_t i = 7; i < values.size(); ++i) {
      const double exact = std::exp(static_cast<double>(values[i]));
      const double last_place = std::ldexp(1.0, std::ilogb(exact) - 23);
      const double error = std::fabs(results[i] - exact) / last_place;
      if (!(error <= worst)) worst = error;
    }
    CHECK(worst <= 2.0);
  });
}

TEST_CASE("many sums at once have the bits of one at a time", "[vector]") {
  for_each_build([&](int build) {
    const int lanes = LIBVAR_CPU_BUILDS(probe_lanes).builds[build]();
    const at::Tensor in = at::randn({lanes, lanes}, seeded(77), at::kFloat);
    const at::Tensor out = at::empty({2, lanes});
    const float largest =
        LIBVAR_CPU_BUILDS(probe_sums).builds[build](out.data_ptr<float>(), in.data_ptr<float>());
    CHECK(same_bits(out[0], out[1]));
    CHECK(at::allclose(out[0], in.to(at::kDouble).sum(1).to(at::kFloat), 0.0, 1e-5));
    CHECK(largest == in[0].max().item<float>());
  });
}

TEST_CASE("a test can choose a lower capability and no higher one", "[vector]") {
  const cpu::Capability before = cpu::capability();
  cpu::set_capability_for_testing(cpu::Capability::kPortable);
  CHECK(cpu::capability() == cpu::Capability::kPortable);
  CHECK(LIBVAR_CPU_BUILDS(probe_lanes).chosen()() == 4);
  cpu::set_capability_for_testing(cpu::Capability::kAvx512Bf16);
  CHECK(cpu::capability() == cpu::detected_capability());
  cpu::set_capability_for_testing(before);
}

}  // namespace
}  // namespace libvar::test
