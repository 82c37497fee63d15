// The sink score and RMSNorm kernel against the double-precision oracle, in every lane order.

#include <catch2/catch.hpp>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/norms.cuh"
#include "element_types.h"
#include "lane_orders.h"
#include "libvar/numerics.h"
#include "reference/norms_oracle.h"

namespace reference = libvar::reference;

namespace {

template <typename T>
inline constexpr bool kIsFloat = std::is_same_v<T, float>;

struct Problem {
  std::int64_t num_tokens = 3;
  std::int64_t hidden_size = 64;
  std::int64_t padding = 0;  ///< elements between tokens
  std::vector<double> hidden;
  std::vector<double> delta;
  std::vector<double> weight;
  std::vector<std::int64_t> sink_dims;
  double eps = 1e-6;
};

template <typename T>
Problem make_problem(std::int64_t num_tokens, std::int64_t hidden_size,
                     std::vector<std::int64_t> sink_dims, bool adds, bool norms) {
  std::mt19937 random(static_cast<unsigned>(hidden_size));
  std::normal_distribution<double> normal;
  Problem in;
  in.num_tokens = num_tokens;
  in.hidden_size = hidden_size;
  in.sink_dims = std::move(sink_dims);
  in.hidden.resize(static_cast<std::size_t>(num_tokens * hidden_size));
  for (double& x : in.hidden) x = normal(random);
  for (std::int64_t t = 0; t < num_tokens;
       t += 2) {  // every other token is massive in its sink dimensions
    for (const std::int64_t d : in.sink_dims) {
      if (d >= 0 && d < hidden_size)
        in.hidden[static_cast<std::size_t>(t * hidden_size + d)] = d % 2 == 0 ? 300.0 : -500.0;
    }
  }
  if (adds) in.delta.resize(in.hidden.size());
  for (double& x : in.delta) x = normal(random);
  if (norms) in.weight.resize(static_cast<std::size_t>(hidden_size));
  for (double& x : in.weight) x = 1.0 + 0.3 * normal(random);
  for (auto* values : {&in.hidden, &in.delta, &in.weight}) round_to<T>(*values);
  return in;
}

template <typename T>
struct KernelResult {
  std::vector<T> residual;
  std::vector<T> normed;
  std::vector<float> phi;
};

template <typename T>
std::vector<T> laid_out(const std::vector<double>& values, std::int64_t hidden_size,
                        std::int64_t padding) {
  std::vector<T> memory;
  for (std::size_t i = 0; i < values.size(); ++i) {
    memory.push_back(to_element<T>(values[i]));
    if ((i + 1) % static_cast<std::size_t>(hidden_size) == 0) {
      memory.insert(memory.end(), static_cast<std::size_t>(padding), to_element<T>(NAN));
    }
  }
  return memory;
}

template <typename T>
KernelResult<T> run_kernel(const Problem& in) {
  auto hidden = laid_out<T>(in.hidden, in.hidden_size, in.padding);
  const auto before = hidden;
  const auto delta = laid_out<T>(in.delta, in.hidden_size, 2 * in.padding);
  const auto weight = laid_out<T>(in.weight, in.hidden_size, 0);
  KernelResult<T> result;
  if (!in.weight.empty()) result.normed = unwritten<T>(in.hidden.size());
  result.phi.assign(static_cast<std::size_t>(in.num_tokens), NAN);
  libvar::cuda::NormArguments<T> args = {};
  args.hidden = hidden.data();
  args.delta = in.delta.empty() ? nullptr : delta.data();
  args.residual = in.delta.empty() ? nullptr : hidden.data();
  args.weight = in.weight.empty() ? nullptr : weight.data();
  args.sink_dims = in.sink_dims.data();
  args.normed = in.weight.empty() ? nullptr : result.normed.data();
  args.phi = result.phi.data();
  args.hidden_stride = in.hidden_size + in.padding;
  args.delta_stride = in.hidden_size + 2 * in.padding;
  args.num_tokens = in.num_tokens;
  args.hidden_size = in.hidden_size;
  args.num_sink_dims = static_cast<int>(in.sink_dims.size());
  args.eps = static_cast<float>(in.eps);
  REQUIRE(libvar::cuda::launch_norm(args, nullptr) == cudaSuccess);
  for (std::int64_t t = 0; t < in.num_tokens; ++t) {
    const auto begin = hidden.begin() + t * args.hidden_stride;
    result.residual.insert(result.residual.end(), begin, begin + in.hidden_size);
    for (std::int64_t d = in.hidden_size; d < args.hidden_stride; ++d)
      REQUIRE(std::isnan(to_double(begin[d])));  // padding
  }
  if (in.delta.empty()) REQUIRE(same_bits(hidden, before));
  return result;
}

template <typename T>
void compare(const Problem& in, const KernelResult<T>& got) {
  const auto round = [](double x) { return to_double(to_element<T>(x)); };
  const auto want = reference::rms_norm(in.hidden, in.delta, in.weight, in.sink_dims,
                                        in.hidden_size, in.eps, round);
  std::size_t wrong = 0;
  for (std::size_t t = 0; t < got.phi.size(); ++t) {
    if (!(std::fabs(got.phi[t] - want.phi[t]) <= libvar::kSinkScoreBound * want.phi[t])) ++wrong;
  }
  CHECK(wrong == 0);
  for (std::size_t i = 0; i < want.residual.size(); ++i) {
    if (!(to_double(got.residual[i]) == want.residual[i])) ++wrong;
  }
  CHECK(wrong == 0);
  // In half types the value before the weight may, rarely, fall to the other side of a tie: then
  // the result is off by two units in the last place. Another order of rounding makes that common.
  REQUIRE(got.normed.size() == want.normed.size());
  std::size_t inexact = 0;
  for (std::size_t i = 0; i < want.normed.size(); ++i) {
    const double error = std::fabs(to_double(got.normed[i]) - want.normed[i]);
    const double bound = kIsFloat<T> ? 1e-5 * std::fabs(want.normed[i]) + 1e-6
                                     : 4.0 * rounding_of<T>(want.normed[i]);
    if (!(error <= bound)) ++wrong;
    if (!kIsFloat<T> && error > 0.0) ++inexact;
  }
  CHECK(wrong == 0);
  CHECK(inexact <= 1 + want.normed.size() / 100);
}

/// The kernel's three uses against the oracle; the same bits at every distance between tokens and
/// in every lane order.
template <typename T>
void check_size(std::int64_t hidden_size, bool all_lane_orders) {
  for (const bool adds : {false, true}) {
    for (const bool norms : {false, true}) {
      if (adds && !norms) continue;
      INFO("D " << hidden_size << (adds ? ", with delta" : "") << (norms ? ", with norm" : ""));
      auto in = make_problem<T>(3, hidden_size, {hidden_size / 2, 0, hidden_size - 1}, adds, norms);
      in.eps = hidden_size % 2 == 0 ? 1e-6 : 0.25;
      const auto first = run_kernel<T>(in);
      compare(in, first);
      const auto check_same = [&] {
        const auto got = run_kernel<T>(in);
        CHECK(same_bits(got.phi, first.phi));
        CHECK(same_bits(got.normed, first.normed));
        CHECK(same_bits(got.residual, first.residual));
      };
      constexpr std::int64_t kElements = libvar::cuda::kVectorSize<T>;
      for (const std::int64_t padding :
           {std::int64_t{3}, 2 * kElements - hidden_size % kElements}) {
        in.padding = padding;
        if (all_lane_orders) {
          for_all_lane_orders(check_same);
        } else {
          check_same();
        }
      }
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("sink scores and norms agree with the oracle", "[simt][norms]", float, __half,
                   __nv_bfloat16) {
  for (const std::int64_t hidden_size : {1, 31, 32, 33, 255, 256, 257, 576, 1023, 4096})
    check_size<TestType>(hidden_size, true);
}

// The number of 16-byte vectors in a token chooses its kernel: see launch_norm.
TEMPLATE_TEST_CASE("sink scores and norms agree with the oracle at the borders of the kernels",
                   "[simt][norms]", float, __half, __nv_bfloat16) {
  for (const std::int64_t vectors : {128, 256 * 2, 256 * 4, 512 * 4}) {
    for (const std::int64_t beyond : {-1, 0, 1})
      check_size<TestType>(vectors * libvar::cuda::kVectorSize<TestType> + beyond, false);
  }
}

TEMPLATE_TEST_CASE("any dimension can be a sink dimension", "[simt][norms]", float, __half,
                   __nv_bfloat16) {
  // All of them in turn, in the longest row of 256 threads.
  const std::int64_t hidden_size = 256 * 4 * libvar::cuda::kVectorSize<TestType> - 1;
  auto in = make_problem<TestType>(1, hidden_size, {}, true, true);
  double sum = 0.0;
  const auto plain = run_kernel<TestType>(in);
  for (const TestType x : plain.residual) sum += to_double(x) * to_double(x);
  const double rms = std::sqrt(sum / static_cast<double>(hidden_size) + in.eps);
  std::size_t wrong = 0;
  for (std::int64_t first = 0; first < hidden_size; first += 8) {
    in.sink_dims.clear();
    for (std::int64_t s = 7; s >= 0; --s) in.sink_dims.push_back((first + s) % hidden_size);
    double largest = 0.0;
    for (const std::int64_t d : in.sink_dims) {
      largest =
          std::fmax(largest, std::fabs(to_double(plain.residual[static_cast<std::size_t>(d)])));
    }
    const double phi = run_kernel<TestType>(in).phi[0];
    if (!(std::fabs(phi - largest / rms) <= libvar::kSinkScoreBound * phi)) ++wrong;
  }
  CHECK(wrong == 0);
}

TEST_CASE("sink scores of a tiny case computed by hand", "[simt][norms]") {
  Problem in;
  in.num_tokens = 1;
  in.hidden_size = 4;
  in.hidden = {1.0, -4.0, 2.0, 2.0};  // mean square 6.25
  in.weight = {1.0, 2.0, 3.0, 4.0};
  in.sink_dims = {0, 1};
  in.eps = 1e-12;
  const auto got = run_kernel<float>(in);
  CHECK(got.phi[0] == Approx(1.6));
  CHECK(got.normed[1] == Approx(-3.2));
  CHECK(got.normed[3] == Approx(3.2));
}

TEST_CASE("phi is 0 without sink dimensions, and dimensions outside are ignored", "[simt][norms]") {
  for_all_lane_orders([] {
    auto in = make_problem<float>(2, 100, {}, false, true);
    in.hidden[5] = NAN;
    CHECK(run_kernel<float>(in).phi == std::vector<float>{0.0f, 0.0f});
    in = make_problem<float>(2, 100, {-1, 100, std::int64_t{1} << 40, 7}, true, true);
    in.hidden[0] = 5000.0;  // where the largest of them would lead if it were cut to 32 bits
    compare(in, run_kernel<float>(in));
    in.sink_dims = {7};
    compare(in, run_kernel<float>(in));
  });
}

TEST_CASE("NaN stays in its token", "[simt][norms]") {
  auto in = make_problem<float>(3, 300, {3, 10}, false, true);
  const auto clean = run_kernel<float>(in);
  in.hidden[300 + 17] = NAN;
  for_all_lane_orders([&] {
    const auto got = run_kernel<float>(in);
    CHECK(std::isnan(got.phi[1]));
    CHECK(std::isnan(got.normed[300 + 40]));
    for (const std::size_t t : {0, 2}) {
      CHECK(got.phi[t] == clean.phi[t]);
      CHECK(std::memcmp(&got.normed[t * 300], &clean.normed[t * 300], 300 * sizeof(float)) == 0);
    }
  });
}

TEST_CASE("a token wider than the shared memory is read again", "[simt][norms]") {
  const auto width = static_cast<std::int64_t>(libvar::cuda::kMostSharedBytes / sizeof(float)) + 19;
  for (const bool adds : {false, true}) {
    const auto in = make_problem<float>(2, width, {0, width - 1}, adds, true);
    for_all_lane_orders([&] { compare(in, run_kernel<float>(in)); });
  }
}

TEST_CASE("norms of no token", "[simt][norms]") {
  CHECK(run_kernel<float>(make_problem<float>(0, 8, {1}, false, true)).phi.empty());
}
