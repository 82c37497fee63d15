// The kernel of silu_mul against the formula in double precision with the roundings of separate
// operators, in every lane order.

#include <catch2/catch.hpp>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "cuda/silu_mul.cuh"
#include "element_types.h"
#include "lane_orders.h"

namespace {

/// Elements behind the output that must stay as they are.
constexpr std::size_t kGuard = 16;

/// Where the rows of one operand lie: `offset` elements from the start of its memory, `stride` from
/// one another.
struct Place {
  std::int64_t offset, stride;
};

struct Layout {
  std::int64_t rows, size;
  Place gate, up;
};

/// Both halves of rows that a product of gate and up in one gives, `padding` elements apart.
Layout halves(std::int64_t rows, std::int64_t size, std::int64_t offset = 0,
              std::int64_t padding = 0) {
  const std::int64_t stride = 2 * size + padding;
  return {rows, size, {offset, stride}, {offset + size, stride}};
}

template <typename T>
struct Problem {
  Layout layout;
  std::vector<T> memory;  // that holds gate and up: NaN where neither lies

  std::size_t gate_at(std::int64_t i, std::int64_t f) const {
    return static_cast<std::size_t>(layout.gate.offset + i * layout.gate.stride + f);
  }

  std::size_t up_at(std::int64_t i, std::int64_t f) const {
    return static_cast<std::size_t>(layout.up.offset + i * layout.up.stride + f);
  }

  std::size_t count() const { return static_cast<std::size_t>(layout.rows * layout.size); }
};

template <typename T>
Problem<T> make_problem(const Layout& layout) {
  std::mt19937 random(static_cast<unsigned>(layout.size));
  std::normal_distribution<double> normal(0.0, 3.0);
  Problem<T> in;
  in.layout = layout;
  const std::size_t end = std::max(in.gate_at(layout.rows, 0), in.up_at(layout.rows, 0));
  in.memory = unwritten<T>(end);
  for (std::int64_t i = 0; i < layout.rows; ++i) {
    for (std::int64_t f = 0; f < layout.size; ++f) {
      in.memory[in.gate_at(i, f)] = to_element<T>(normal(random));
      in.memory[in.up_at(i, f)] = to_element<T>(normal(random));
    }
  }
  return in;
}

/// The previous kernel of the stream writes gate and up late.
template <typename T>
std::vector<T> run_kernel(const Problem<T>& in) {
  auto memory = unwritten<T>(in.memory.size());
  auto output = unwritten<T>(in.count() + kGuard);
  simt::set_previous_kernel([&] {
    memory = in.memory;
    std::fill(output.begin(), output.end(), to_element<T>(NAN));
  });
  libvar::cuda::SiluMulArguments<T> args = {};
  args.gate = memory.data() + in.layout.gate.offset;
  args.up = memory.data() + in.layout.up.offset;
  args.output = output.data();
  args.gate_stride = in.layout.gate.stride;
  args.up_stride = in.layout.up.stride;
  args.num_rows = in.layout.rows;
  args.row_size = in.layout.size;
  REQUIRE(libvar::cuda::launch_silu_mul(args, nullptr) == cudaSuccess);
  const auto end = output.begin() + static_cast<std::ptrdiff_t>(in.count());
  CHECK(same_bits(std::vector<T>(end, output.end()), unwritten<T>(kGuard)));
  output.erase(end, output.end());
  return output;
}

/// float32: within a few roundings. Half types: as the double-precision result rounds, but for the
/// rare silu that float32 puts on the other side of a tie.
template <typename T>
void compare(const Problem<T>& in, const std::vector<T>& got) {
  const auto round = [](double x) { return to_double(to_element<T>(x)); };
  REQUIRE(got.size() == in.count());
  std::size_t wrong = 0, inexact = 0;
  for (std::size_t k = 0; k < got.size(); ++k) {
    const auto i = static_cast<std::int64_t>(k) / in.layout.size;
    const auto f = static_cast<std::int64_t>(k) % in.layout.size;
    const double gate = to_double(in.memory[in.gate_at(i, f)]);
    const double up = to_double(in.memory[in.up_at(i, f)]);
    const double silu = round(gate / (1.0 + std::exp(-gate)));
    const double want = round(silu * up);
    const double error = std::fabs(to_double(got[k]) - want);
    const double units = std::is_same_v<T, float> ? 4.0 : 1.0;  // that silu may be off
    const double allowed =
        2.0 * units * rounding_of<T>(silu) * std::fabs(up) + 2.0 * rounding_of<T>(want);
    if (!(error <= allowed)) ++wrong;
    if (!std::is_same_v<T, float> && error > 0.0) ++inexact;
  }
  CHECK(wrong == 0);
  CHECK(inexact <= 1 + got.size() / 100);
}

}  // namespace

TEMPLATE_TEST_CASE("silu_mul agrees with the formula", "[simt][silu_mul]", float, __half,
                   __nv_bfloat16) {
  constexpr std::int64_t kVector = libvar::cuda::kVectorSize<TestType>;
  constexpr std::int64_t kBlock = libvar::cuda::kSiluMulElements<TestType>;
  for (const std::int64_t size :
       {std::int64_t{1}, kVector - 1, kVector, kVector + 1, std::int64_t{31}, std::int64_t{64},
        std::int64_t{333}, kBlock / 2 - 1, kBlock / 2, kBlock / 2 + kVector, kBlock - 1, kBlock,
        kBlock + 1, 2 * kBlock + kBlock / 2 + 3, std::int64_t{11008}}) {
    for (const std::int64_t rows : {1, 3}) {
      INFO("F " << size << ", " << rows << " rows");
      const auto in = make_problem<TestType>(halves(rows, size));
      compare(in, run_kernel(in));
    }
  }
}

TEMPLATE_TEST_CASE("silu_mul gives the same bits wherever the rows lie and in any lane order",
                   "[simt][silu_mul]", float, __half, __nv_bfloat16) {
  constexpr std::int64_t kVector = libvar::cuda::kVectorSize<TestType>;
  constexpr std::int64_t kBlock = libvar::cuda::kSiluMulElements<TestType>;
  for (const std::int64_t size : {5 * kVector, kBlock + 7 * kVector, kBlock + 5}) {
    const auto aligned = make_problem<TestType>(halves(3, size, 0, kVector - size % kVector));
    const auto want = run_kernel(aligned);
    compare(aligned, want);
    const std::int64_t stride = (size + kVector) / kVector * kVector;
    for (const Layout& layout :
         {halves(3, size, 1), halves(3, size, 0, 3),
          // Matrices of their own, with other distances between rows; one of them unaligned.
          Layout{3, size, {0, stride}, {4 * stride, stride + kVector}},
          Layout{3, size, {0, stride}, {4 * stride + 1, stride + kVector}},
          Layout{3, size, {1, stride}, {5 * stride, stride}},
          Layout{3, size, {0, stride + 1}, {5 * stride, stride}}}) {
      INFO("F " << size << ", gate " << layout.gate.offset << " + " << layout.gate.stride
                << " i, up " << layout.up.offset << " + " << layout.up.stride << " i");
      const auto in = make_problem<TestType>(layout);
      for_all_lane_orders([&] { CHECK(same_bits(run_kernel(in), want)); });
    }
  }
}

TEMPLATE_TEST_CASE("silu_mul of special values", "[simt][silu_mul]", float, __half, __nv_bfloat16) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> gates = {0.0, -0.0, 1.0, 20.0, -200.0, infinity, NAN, 1.0, -infinity};
  const std::vector<double> ups = {3.0, 3.0, 0.0, 2.0, -4.0, -1.0, 0.0, NAN, 1.0};
  const auto size = static_cast<std::int64_t>(gates.size());
  auto in = make_problem<TestType>(halves(2, size));
  for (std::int64_t f = 0; f < size; ++f) {
    in.memory[in.gate_at(0, f)] = to_element<TestType>(gates[static_cast<std::size_t>(f)]);
    in.memory[in.up_at(0, f)] = to_element<TestType>(ups[static_cast<std::size_t>(f)]);
  }
  std::vector<double> got;
  for (const TestType x : run_kernel(in)) got.push_back(to_double(x));
  CHECK((got[0] == 0.0 && !std::signbit(got[0])));
  CHECK((got[1] == 0.0 && std::signbit(got[1])));
  CHECK(got[2] == 0.0);
  CHECK(got[3] == Approx(40.0).epsilon(1e-6));  // e^-20 is less than any of the dtypes' units
  CHECK((got[4] == 0.0 && !std::signbit(got[4])));
  CHECK(got[5] == -infinity);
  // PyTorch's silu has no limit at minus infinity either: it divides by 1 + infinity.
  for (const std::size_t f : {6, 7, 8}) CHECK(std::isnan(got[f]));
  for (std::size_t k = 9; k < got.size(); ++k) CHECK(std::isfinite(got[k]));
}

TEST_CASE("silu_mul of nothing, and of rows that are too long", "[simt][silu_mul]") {
  libvar::cuda::SiluMulArguments<float> args = {};
  args.row_size = 8;
  CHECK(libvar::cuda::launch_silu_mul(args, nullptr) == cudaSuccess);
  args.num_rows = 1;
  args.row_size = std::int64_t{1} << 31;
  CHECK(libvar::cuda::launch_silu_mul(args, nullptr) == cudaErrorInvalidValue);
}
