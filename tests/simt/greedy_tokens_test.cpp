// The kernel of greedy_tokens against a plain search, in every lane order.

#include <catch2/catch.hpp>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "cuda/greedy_tokens.cuh"
#include "element_types.h"
#include "lane_orders.h"

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <typename T>
struct Problem {
  std::int64_t rows, size, offset, stride;
  std::vector<T> memory;  // NaN where no row lies

  T& at(std::int64_t row, std::int64_t token) {
    return memory[static_cast<std::size_t>(offset + row * stride + token)];
  }
};

template <typename T>
Problem<T> make_problem(std::int64_t rows, std::int64_t size, std::int64_t offset = 0,
                        std::int64_t padding = 0) {
  std::mt19937 random(static_cast<unsigned>(size));
  std::uniform_int_distribution<int> level(-9, 9);  // so that the largest is often not alone
  Problem<T> in = {rows, size, offset, size + padding, {}};
  in.memory = unwritten<T>(static_cast<std::size_t>(offset + rows * in.stride));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t v = 0; v < size; ++v) in.at(i, v) = to_element<T>(level(random));
  }
  return in;
}

template <typename T>
std::vector<std::int64_t> search(Problem<T> in) {
  std::vector<std::int64_t> result;
  for (std::int64_t i = 0; i < in.rows; ++i) {
    double largest = -kInfinity;
    std::int64_t token = -1;
    bool has_nan = false;
    for (std::int64_t v = 0; v < in.size; ++v) {
      const double logit = to_double(in.at(i, v));
      has_nan = has_nan || std::isnan(logit);
      if (!(logit > largest)) continue;
      largest = logit;
      token = v;
    }
    result.push_back(has_nan || std::isinf(largest) ? -1 : token);
  }
  return result;
}

/// The previous kernel of the stream writes the logits late.
template <typename T>
std::vector<std::int64_t> run_kernel(const Problem<T>& in) {
  auto memory = unwritten<T>(in.memory.size());
  std::vector<std::int64_t> tokens(static_cast<std::size_t>(in.rows) + 1, -7);
  simt::set_previous_kernel([&] { memory = in.memory; });
  libvar::cuda::GreedyArguments<T> args = {};
  args.logits = memory.data() + in.offset;
  args.tokens = tokens.data();
  args.row_stride = in.stride;
  args.num_rows = in.rows;
  args.row_size = in.size;
  REQUIRE(libvar::cuda::launch_greedy_tokens(args, nullptr) == cudaSuccess);
  CHECK(tokens.back() == -7);
  tokens.pop_back();
  return tokens;
}

}  // namespace

TEMPLATE_TEST_CASE("greedy_tokens finds what a search finds", "[simt][greedy_tokens]", float,
                   __half, __nv_bfloat16) {
  constexpr std::int64_t kVector = libvar::cuda::kVectorSize<TestType>;
  constexpr std::int64_t kStep = libvar::cuda::kGreedyThreads * kVector;
  constexpr std::int64_t kRound = kStep * libvar::cuda::kGreedyVectors;
  for (const std::int64_t size :
       {std::int64_t{1}, kVector - 1, kVector, kVector + 1, 32 * kVector, kStep - 1, kStep,
        kStep + 1, 2 * kStep + 5, kRound - 1, kRound, kRound + 1, 2 * kRound + kStep + 3}) {
    INFO("V " << size);
    auto in = make_problem<TestType>(3, size, 1, 2);  // rows at three alignments
    CHECK(run_kernel(in) == search(in));
    // One largest, early and late in what a thread, a warp and the block have.
    for (const std::int64_t token :
         {std::int64_t{0}, size - 1, size / 2, kStep, kStep + 1, 3 * kStep + 33 * kVector + 2}) {
      if (token >= size) continue;
      INFO("largest at " << token);
      auto one = in;
      for (std::int64_t i = 0; i < 3; ++i) one.at(i, token) = to_element<TestType>(11.0);
      CHECK(run_kernel(one) == std::vector<std::int64_t>(3, token));
    }
  }
}

TEMPLATE_TEST_CASE("greedy_tokens takes the lowest of equal ones in any lane order",
                   "[simt][greedy_tokens]", float, __half, __nv_bfloat16) {
  const auto in = make_problem<TestType>(2, 5000);
  const auto want = search(in);
  for_all_lane_orders([&] { CHECK(run_kernel(in) == want); });
  auto equal = in;
  for (std::int64_t v = 0; v < 5000; ++v) equal.at(1, v) = to_element<TestType>(-3.0);
  for_all_lane_orders([&] { CHECK(run_kernel(equal).back() == 0); });
}

TEMPLATE_TEST_CASE("greedy_tokens of logits that are not finite", "[simt][greedy_tokens]", float,
                   __half, __nv_bfloat16) {
  for (const std::int64_t token : {0, 1, 31, 32, 8191, 20000, 33000}) {
    INFO("at " << token);
    auto in = make_problem<TestType>(4, 33001);
    const auto want = search(in);
    in.at(0, token) = to_element<TestType>(NAN);
    in.at(1, token) = to_element<TestType>(kInfinity);
    in.at(2, token) = to_element<TestType>(-kInfinity);
    for (std::int64_t v = 0; v < in.size; ++v) in.at(3, v) = to_element<TestType>(-kInfinity);
    CHECK(run_kernel(in) == search(in));
    CHECK(run_kernel(in)[0] == -1);
    in.at(3, token) = to_element<TestType>(-9.0);
    CHECK(run_kernel(in)[3] == token);
  }
}

TEST_CASE("greedy_tokens of nothing, and of rows that are too long", "[simt][greedy_tokens]") {
  libvar::cuda::GreedyArguments<float> args = {};
  args.row_size = 8;
  CHECK(libvar::cuda::launch_greedy_tokens(args, nullptr) == cudaSuccess);
  args.num_rows = 1;
  args.row_size = std::int64_t{1} << 31;
  CHECK(libvar::cuda::launch_greedy_tokens(args, nullptr) == cudaErrorInvalidValue);
}
