#pragma once

// What the tests of the ops share: seeded inputs, the way from tensors to the oracles of
// reference/, comparisons.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "catch.h"
#include "libvar/numerics.h"
#include "libvar/ops.h"
#include "reference/attention_oracle.h"
#include "reference/norms_oracle.h"
#include "reference/redistribute_oracle.h"

namespace libvar::test {

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
inline constexpr std::int64_t kSweepSizes[] = {1, 31, 32, 33, 576, 640, 1023};
inline constexpr at::ScalarType kDtypes[] = {at::kFloat, at::kHalf, at::kBFloat16};

inline at::Generator seeded(std::uint64_t seed) {
  return at::detail::createCPUGenerator(seed);
}

inline std::vector<double> doubles(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

inline std::vector<float> floats(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous();
  return {flat.const_data_ptr<float>(), flat.const_data_ptr<float>() + flat.numel()};
}

inline std::vector<std::uint8_t> bytes(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kByte).contiguous();
  return {flat.const_data_ptr<std::uint8_t>(), flat.const_data_ptr<std::uint8_t>() + flat.numel()};
}

/// Largest |a - b|; NaN where any difference is NaN, so that `largest_difference(...) <= bound`
/// fails.
inline double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  REQUIRE(a.size() == b.size());
  double largest = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::fabs(a[i] - b[i]);
    if (!(difference <= largest)) largest = difference;
    if (std::isnan(difference)) return difference;
  }
  return largest;
}

inline double largest_difference(const at::Tensor& a, const std::vector<double>& b) {
  return largest_difference(doubles(a), b);
}

/// Distance of 1 from the next number of the dtype.
inline double unit(at::ScalarType type) {
  return type == at::kFloat ? 0x1p-23 : type == at::kHalf ? 0x1p-10 : 0x1p-7;
}

/// The same bits, NaN included.
inline bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes() || a.scalar_type() != b.scalar_type()) return false;
  const at::ScalarType as = a.element_size() == 4   ? at::kInt
                            : a.element_size() == 2 ? at::kShort
                                                    : at::kByte;
  return at::equal(a.contiguous().view(as), b.contiguous().view(as));
}

/// phi of K keys per sequence: about one in `one_in` is a sink at the default tau.
inline at::Tensor random_sink_scores(at::IntArrayRef sizes, int one_in,
                                     const at::Generator& generator) {
  const at::Tensor sink = at::rand(sizes, generator, at::kFloat).mul(one_in).lt(1.0);
  const at::Tensor phi = at::rand(sizes, generator, at::kFloat).mul(15.0);
  return at::where(sink, phi + 25.0, phi);
}

/// Keys [K/8, K/8 + K/2) are visual.
inline at::Tensor span_mask(std::int64_t batch, std::int64_t num_keys) {
  const at::Tensor mask = at::zeros({batch, num_keys}, at::kBool);
  mask.narrow(1, num_keys / 8, num_keys / 2).fill_(true);
  return mask;
}

struct AttentionSizes {
  std::int64_t batch = 1, num_heads = 4, num_kv_heads = 4, num_rows = 8, num_keys = 64,
               head_dim = 16;
};

/// Normal inputs; the scores have a standard deviation of 2, so that the class masses of rows
/// differ.
inline AttentionInputs random_attention(const AttentionSizes& s, at::ScalarType type,
                                        std::uint64_t seed) {
  const at::Generator generator = seeded(seed);
  AttentionInputs in;
  in.query =
      at::randn({s.batch, s.num_heads, s.num_rows, s.head_dim}, generator, at::kFloat).to(type);
  in.key =
      at::randn({s.batch, s.num_kv_heads, s.num_keys, s.head_dim}, generator, at::kFloat).to(type);
  in.value =
      at::randn({s.batch, s.num_kv_heads, s.num_keys, s.head_dim}, generator, at::kFloat).to(type);
  in.sink_scores = random_sink_scores({s.batch, s.num_keys}, 8, generator);
  in.visual_mask = span_mask(s.batch, s.num_keys);
  in.scale = 2.0 / std::sqrt(static_cast<double>(s.head_dim));
  return in;
}

inline reference::AttentionProblem problem_of(
    const AttentionInputs& in, const RedistributionRule& rule,
    const std::optional<at::Tensor>& params = std::nullopt) {
  reference::AttentionProblem problem;
  problem.batch = static_cast<int>(in.query.size(0));
  problem.num_heads = static_cast<int>(in.query.size(1));
  problem.num_rows = static_cast<int>(in.query.size(2));
  problem.head_dim = static_cast<int>(in.query.size(3));
  problem.num_kv_heads = static_cast<int>(in.key.size(1));
  problem.num_keys = static_cast<int>(in.key.size(2));
  problem.query = doubles(in.query);
  problem.key = doubles(in.key);
  problem.value = doubles(in.value);
  problem.sink_scores = floats(in.sink_scores);
  problem.visual_mask = bytes(in.visual_mask);
  if (in.row_mask) problem.row_mask = bytes(*in.row_mask);
  if (in.kv_lengths) {
    problem.kv_lengths.emplace();
    for (const double length : doubles(*in.kv_lengths))
      problem.kv_lengths->push_back(static_cast<int>(length));
  }
  if (params) problem.params = floats(*params);
  problem.scale = in.scale;
  problem.rule = rule;
  return problem;
}

inline reference::RedistributeProblem problem_of(const at::Tensor& probs,
                                                 const at::Tensor& sink_scores,
                                                 const at::Tensor& visual_mask,
                                                 const std::optional<at::Tensor>& row_mask,
                                                 const RedistributionRule& rule) {
  reference::RedistributeProblem problem;
  problem.batch = static_cast<int>(probs.size(0));
  problem.num_heads = static_cast<int>(probs.size(1));
  problem.num_rows = static_cast<int>(probs.size(2));
  problem.num_keys = static_cast<int>(probs.size(3));
  problem.probs = doubles(probs);
  problem.sink_scores = floats(sink_scores);
  problem.visual_mask = bytes(visual_mask);
  if (row_mask) problem.row_mask = bytes(*row_mask);
  problem.rule = rule;
  return problem;
}

/// Rows on which two selections differ. A flip where the oracle was `margin` or more away from its
/// other decision is an error, one within it is rounding.
struct Flips {
  std::int64_t rows = 0, selected = 0, flipped = 0, wrong = 0;

  void count(const std::vector<std::uint8_t>& actual, const std::vector<std::uint8_t>& expected,
             const std::vector<double>& margins, double margin) {
    REQUIRE(actual.size() == expected.size());
    for (std::size_t i = 0; i < actual.size(); ++i) {
      ++rows;
      selected += expected[i];
      if (actual[i] == expected[i]) continue;
      ++flipped;
      if (margins[i] >= margin) ++wrong;
    }
  }

  std::string text() const {
    return "rows: " + std::to_string(rows) + ", selected: " + std::to_string(selected) +
           ", selection flips within rounding: " + std::to_string(flipped - wrong) +
           ", wrong: " + std::to_string(wrong);
  }
};

/// Text of the exception that f throws, as the type E; fails the test where it throws another or
/// none.
template <typename E, typename F>
std::string message_of(F&& f) {
  try {
    f();
  } catch (const E& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return std::string("another exception: ") + error.what();
  }
  return "no exception";
}

}  // namespace libvar::test
