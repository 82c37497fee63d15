// The kernels of skinny_linear and skinny_swiglu against the double-precision oracle, in every lane
// order.

#include <catch2/catch.hpp>

#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "cuda/skinny_linear.cuh"
#include "element_types.h"
#include "lane_orders.h"
#include "libvar/numerics.h"
#include "reference/linear_oracle.h"

namespace reference = libvar::reference;

namespace {

/// Types of the weight and of everything else.
template <typename W, typename T>
struct Types {
  using Weight = W;
  using Element = T;
  static constexpr bool kIsInt8 = std::is_same_v<W, std::int8_t>;
};

using Float = Types<float, float>;
using Half = Types<__half, __half>;
using Bfloat = Types<__nv_bfloat16, __nv_bfloat16>;
using Int8Float = Types<std::int8_t, float>;
using Int8Half = Types<std::int8_t, __half>;
using Int8Bfloat = Types<std::int8_t, __nv_bfloat16>;

struct Matrix {
  std::vector<double> weight;  ///< [N, K]
  std::vector<double> scale;   ///< [N], of int8
  std::vector<double> bias;    ///< [N] or empty
};

struct Problem {
  std::int64_t rows = 1, out_features = 1, in_features = 1;
  std::vector<double> input;     ///< [M, K]
  std::vector<Matrix> matrices;  ///< one, or gate and up
  std::int64_t padding = 0;      ///< elements between rows of the weight
  std::int64_t offset = 0;       ///< elements before the first row of weight and input
  bool starts_early = false;
};

template <typename Case>
Problem make_problem(std::int64_t rows, std::int64_t out_features, std::int64_t in_features,
                     bool has_bias, bool is_gated) {
  std::mt19937 random(static_cast<unsigned>(in_features * 16 + rows));
  std::normal_distribution<double> normal;
  std::uniform_int_distribution<int> integer(-128, 127);
  const double size = std::sqrt(static_cast<double>(in_features));  // of outputs about 1
  Problem in;
  in.rows = rows;
  in.out_features = out_features;
  in.in_features = in_features;
  in.input.resize(static_cast<std::size_t>(rows * in_features));
  for (double& x : in.input) x = normal(random);
  round_to<typename Case::Element>(in.input);
  for (int i = 0; i < (is_gated ? 2 : 1); ++i) {
    Matrix matrix;
    matrix.weight.resize(static_cast<std::size_t>(out_features * in_features));
    if constexpr (Case::kIsInt8) {
      for (double& x : matrix.weight) x = integer(random);
      for (std::int64_t n = 0; n < out_features; ++n) {
        matrix.scale.push_back(
            static_cast<float>((1.0 + 0.5 * static_cast<double>(n % 3)) / 75.0 / size));
      }
    } else {
      for (double& x : matrix.weight) x = normal(random) / size;
      round_to<typename Case::Weight>(matrix.weight);
    }
    if (has_bias) matrix.bias.resize(static_cast<std::size_t>(out_features));
    for (double& x : matrix.bias) x = 3.0 * normal(random);
    round_to<typename Case::Element>(matrix.bias);
    in.matrices.push_back(std::move(matrix));
  }
  return in;
}

template <typename T>
T element_of(double x) {
  if constexpr (std::is_same_v<T, std::int8_t>) {
    return static_cast<std::int8_t>(x);
  } else {
    return to_element<T>(x);
  }
}

/// Values in rows, `padding` elements apart, `offset` from the start: between them NaN or, int8, a
/// number that would be missed.
template <typename T>
std::vector<T> laid_out(const std::vector<double>& values, std::int64_t in_features,
                        std::int64_t padding, std::int64_t offset) {
  const T filler = std::is_same_v<T, std::int8_t> ? element_of<T>(101) : element_of<T>(NAN);
  std::vector<T> memory(static_cast<std::size_t>(offset), filler);
  for (std::size_t i = 0; i < values.size(); ++i) {
    memory.push_back(element_of<T>(values[i]));
    if ((i + 1) % static_cast<std::size_t>(in_features) == 0)
      memory.insert(memory.end(), static_cast<std::size_t>(padding), filler);
  }
  return memory;
}

template <typename T>
std::vector<T> converted(const std::vector<double>& values) {
  return laid_out<T>(values, 1, 0, 0);
}

/// The previous kernel of the stream writes input, bias and output late.
template <typename Case>
std::vector<typename Case::Element> run_kernel(const Problem& in) {
  using W = typename Case::Weight;
  using T = typename Case::Element;

  struct Memory {
    std::vector<W> weight;
    std::vector<float> scale;
    std::vector<T> bias;
  };

  const auto late_input = laid_out<T>(in.input, in.in_features, 0, in.offset);
  auto input = unwritten<T>(late_input.size());
  auto output = unwritten<T>(static_cast<std::size_t>(in.rows * in.out_features));
  std::vector<Memory> memory;
  std::vector<libvar::cuda::SkinnyMatrix<W, T>> matrices;
  memory.reserve(2);
  for (const Matrix& matrix : in.matrices) {
    memory.push_back({laid_out<W>(matrix.weight, in.in_features, in.padding, in.offset),
                      converted<float>(matrix.scale), unwritten<T>(matrix.bias.size())});
    const Memory& own = memory.back();
    matrices.push_back({own.weight.data() + in.offset,
                        own.scale.empty() ? nullptr : own.scale.data(),
                        own.bias.empty() ? nullptr : own.bias.data(), in.in_features + in.padding});
  }
  simt::set_previous_kernel([&] {
    input = late_input;
    std::fill(output.begin(), output.end(), to_element<T>(NAN));
    for (std::size_t i = 0; i < memory.size(); ++i) {
      const auto late = converted<T>(in.matrices[i].bias);
      std::copy(late.begin(), late.end(), memory[i].bias.begin());
    }
  });
  libvar::cuda::SkinnyArguments<W, T> args = {};
  args.first = matrices.front();
  args.second = matrices.back();
  args.input = input.data() + in.offset;
  args.output = output.data();
  args.num_rows = in.rows;
  args.in_features = in.in_features;
  args.out_features = in.out_features;
  args.starts_early = in.starts_early;
  const cudaError_t error = matrices.size() == 2
                                ? libvar::cuda::launch_skinny_swiglu(args, nullptr)
                                : libvar::cuda::launch_skinny_linear(args, nullptr);
  REQUIRE(error == cudaSuccess);
  return output;
}

reference::LinearResult exact(const Problem& in, const Matrix& matrix) {
  std::vector<double> weight = matrix.weight;
  for (std::size_t i = 0; !matrix.scale.empty() && i < weight.size(); ++i)
    weight[i] *= matrix.scale[i / static_cast<std::size_t>(in.in_features)];
  return reference::linear(in.input, weight, matrix.bias, in.in_features);
}

template <typename Case>
void compare(const Problem& in, const std::vector<typename Case::Element>& got) {
  using T = typename Case::Element;
  const auto first = exact(in, in.matrices.front());
  REQUIRE(got.size() == first.output.size());
  std::size_t wrong = 0;
  if (in.matrices.size() == 1) {
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double allowed = libvar::kLinearBound * first.magnitude[i] +
                             1.01 * rounding_of<T>(first.output[i]) + 1e-30;
      if (!(std::fabs(to_double(got[i]) - first.output[i]) <= allowed)) ++wrong;
    }
    CHECK(wrong == 0);
    return;
  }
  // In half types a map may, rarely, fall to the other side of a tie, which the others follow.
  // Another order of rounding makes that common.
  const auto second = exact(in, in.matrices.back());
  const auto want =
      reference::swiglu(first, second, [](double x) { return to_double(to_element<T>(x)); });
  std::size_t inexact = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double gate_error =
        libvar::kLinearBound * first.magnitude[i] + 2.0 * rounding_of<T>(first.output[i]);
    const double up_error =
        libvar::kLinearBound * second.magnitude[i] + 2.0 * rounding_of<T>(second.output[i]);
    const double allowed = want.gate_slope[i] * gate_error + want.up_slope[i] * up_error +
                           4.0 * rounding_of<T>(want.output[i]);
    const double error = std::fabs(to_double(got[i]) - want.output[i]);
    if (!(error <= allowed)) ++wrong;
    if (!std::is_same_v<T, float> && error > 0.0) ++inexact;
  }
  CHECK(wrong == 0);
  CHECK(inexact <= 1 + got.size() / 100);
}

/// The rows [m, m + rows) alone.
Problem some_rows(const Problem& in, std::int64_t m, std::int64_t rows) {
  Problem part = in;
  part.rows = rows;
  const auto begin = in.input.begin() + m * in.in_features;
  part.input.assign(begin, begin + rows * in.in_features);
  return part;
}

}  // namespace

TEMPLATE_TEST_CASE("skinny kernels agree with the oracle", "[simt][linear]", Float, Half, Bfloat,
                   Int8Float, Int8Half, Int8Bfloat) {
  for (const bool is_gated : {false, true}) {
    for (const std::int64_t in_features : {1, 7, 31, 32, 33, 64, 255, 256, 257, 576, 1040, 4112}) {
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        INFO("M " << rows << ", K " << in_features << (is_gated ? ", gated" : ""));
        const auto in = make_problem<TestType>(rows, 19, in_features, rows % 2 == 0, is_gated);
        compare<TestType>(in, run_kernel<TestType>(in));
      }
    }
  }
}

TEMPLATE_TEST_CASE("an output has the same bits wherever its rows lie and in any lane order",
                   "[simt][linear]", Float, Half, Bfloat, Int8Float, Int8Half, Int8Bfloat) {
  constexpr std::int64_t kElements = libvar::cuda::kVectorSize<typename TestType::Weight>;
  for (const bool is_gated : {false, true}) {
    // The second is longer than a block of vectors.
    for (const std::int64_t in_features : {21 * kElements, 70 * 32 * kElements + 5}) {
      INFO("K " << in_features << (is_gated ? ", gated" : ""));
      auto in = make_problem<TestType>(1, 5, in_features, true, is_gated);
      const auto first = run_kernel<TestType>(in);
      compare<TestType>(in, first);
      for (const auto& [padding, offset] : {std::pair<std::int64_t, std::int64_t>{0, 1},
                                            {kElements - in_features % kElements, 0},
                                            {3, 0}}) {
        in.padding = padding;
        in.offset = offset;
        CHECK(same_bits(run_kernel<TestType>(in), first));
      }
      in.offset = 0;
      for_all_lane_orders([&] { CHECK(same_bits(run_kernel<TestType>(in), first)); });
    }
  }
}

TEMPLATE_TEST_CASE("a row has the same bits whatever the others", "[simt][linear]", Float, Half,
                   Bfloat, Int8Float, Int8Half, Int8Bfloat) {
  for (const bool is_gated : {false, true}) {
    for (const std::int64_t in_features : {1040, 331}) {
      const auto in = make_problem<TestType>(8, 6, in_features, true, is_gated);
      const auto all = run_kernel<TestType>(in);
      for (std::int64_t rows = 1; rows < 8; ++rows) {
        const auto got = run_kernel<TestType>(some_rows(in, 8 - rows, rows));
        CHECK(same_bits(got, {all.end() - rows * in.out_features, all.end()}));
      }
    }
  }
}

TEMPLATE_TEST_CASE("a kernel that starts early waits for input, bias and output", "[simt][linear]",
                   Float, Int8Half) {
  for (const bool is_gated : {false, true}) {
    for (const std::int64_t rows : {1, 5}) {
      for (const std::int64_t in_features : {576, 331}) {
        auto in = make_problem<TestType>(rows, 19, in_features, true, is_gated);
        const auto late = run_kernel<TestType>(in);
        in.starts_early = true;
        for_all_lane_orders([&] { CHECK(same_bits(run_kernel<TestType>(in), late)); });
      }
    }
  }
}

TEMPLATE_TEST_CASE("every int8 has its value", "[simt][linear]", Int8Float, Int8Half, Int8Bfloat) {
  // One place of the input is 1: the outputs are the weight's column.
  Problem in;
  in.in_features = 48;
  in.out_features = 256;
  in.matrices.resize(1);
  in.matrices[0].scale.assign(256, 1.0);
  for (int n = 0; n < 256; ++n) {
    for (int k = 0; k < 48; ++k) in.matrices[0].weight.push_back((n + 37 * k) % 256 - 128);
  }
  for (std::int64_t place = 0; place < 48; ++place) {
    in.input.assign(48, 0.0);
    in.input[static_cast<std::size_t>(place)] = 1.0;
    const auto got = run_kernel<TestType>(in);
    for (std::int64_t n = 0; n < 256; ++n)
      CHECK(to_double(got[static_cast<std::size_t>(n)]) ==
            in.matrices[0].weight[static_cast<std::size_t>(n * 48 + place)]);
  }
}

TEST_CASE("skinny kernels of tiny cases computed by hand", "[simt][linear]") {
  Problem in;
  in.in_features = 3;
  in.out_features = 2;
  in.rows = 2;
  in.input = {1.0, -2.0, 0.5, 4.0, 0.0, 8.0};
  in.matrices.push_back({{1.0, 1.0, 1.0, 0.0, 0.25, -2.0}, {}, {10.0, -1.0}});
  CHECK(run_kernel<Float>(in) == std::vector<float>{9.5f, -2.5f, 22.0f, -17.0f});
  in.matrices[0].scale = {2.0, 0.5};
  in.matrices[0].weight = {1.0, 1.0, 1.0, 0.0, 4.0, -2.0};
  CHECK(run_kernel<Int8Float>(in) == std::vector<float>{9.0f, -5.5f, 34.0f, -9.0f});
  // silu(0) is 0, silu of a large number that number, of a large negative one 0.
  in.matrices = {{{0.0, 0.0, 0.0, 0.0, 50.0, 0.0}, {}, {}},
                 {{1.0, 1.0, 1.0, 1.0, 0.0, 0.0}, {}, {}}};
  in.input = {1.0, 2.0, 3.0, 4.0, -5.0, 6.0};
  const auto got = run_kernel<Float>(in);
  CHECK(got == std::vector<float>{0.0f, 100.0f, 0.0f, -0.0f});
  in.matrices[0].bias = {1.0, -100.0};
  CHECK(run_kernel<Float>(in)[0] == Approx(6.0 / (1.0 + std::exp(-1.0))));
}

TEMPLATE_TEST_CASE("NaN and infinity stay in their row", "[simt][linear]", Float, Half, Bfloat) {
  using T = typename TestType::Element;
  for (const std::int64_t in_features : {576, 331}) {
    const auto in = make_problem<TestType>(3, 5, in_features, false, false);
    const auto clean = run_kernel<TestType>(in);
    for (const std::int64_t element : {std::int64_t{0}, in_features / 2, in_features - 1}) {
      auto spoilt = in;
      spoilt.input[static_cast<std::size_t>(in_features + element)] = NAN;
      spoilt.matrices[0].weight[static_cast<std::size_t>(3 * in_features + element)] = INFINITY;
      const auto got = run_kernel<TestType>(spoilt);
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (i / 5 == 1) {
          CHECK(std::isnan(to_double(got[i])));
        } else if (i % 5 == 3) {
          CHECK(std::isinf(to_double(got[i])));
        } else {
          CHECK(same_bits(std::vector<T>{got[i]}, {clean[i]}));
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("skinny kernels stay accurate in a long row", "[simt][linear]", Float, Bfloat) {
  // One number again and again: what rounding does to it adds up instead of evening out.
  Problem in;
  in.in_features = (1 << 20) + 5;
  const auto size = static_cast<std::size_t>(in.in_features);
  for (const std::int64_t rows : {1, 2}) {
    in.rows = rows;
    in.input.assign(size * static_cast<std::size_t>(rows), 0.7);
    in.matrices = {{std::vector<double>(size, 0.9), {}, {}}};
    round_to<typename TestType::Element>(in.input);
    round_to<typename TestType::Element>(in.matrices[0].weight);
    in.padding = 3;
    compare<TestType>(in, run_kernel<TestType>(in));
  }
}

TEST_CASE("skinny kernels of nothing, and of too many rows", "[simt][linear]") {
  CHECK(run_kernel<Float>(make_problem<Float>(0, 4, 8, true, false)).empty());
  CHECK(run_kernel<Float>(make_problem<Float>(2, 0, 8, false, true)).empty());
  libvar::cuda::SkinnyArguments<float, float> args = {};
  args.num_rows = libvar::cuda::kMostSkinnyRows + 1;
  args.in_features = args.out_features = 4;
  CHECK(libvar::cuda::launch_skinny_linear(args, nullptr) == cudaErrorInvalidValue);
}
