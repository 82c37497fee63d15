#pragma once

// What the tests on a GPU share: whether there is one, tensors on it, comparisons, tokens.

#include <ATen/ATen.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "catch.h"
#include "libvar/ops.h"

namespace libvar::test {

/// Whether the test can run. Without a GPU it says so once; ctest then counts the entry as skipped,
/// unless LIBVAR_REQUIRE_CUDA=1 makes it a failure.
inline bool have_gpu() {
  static const bool has_cuda = at::hasCUDA();
  const char* required = std::getenv("LIBVAR_REQUIRE_CUDA");
  if (has_cuda) return true;
  if (required != nullptr && std::string(required) == "1") {
    FAIL("no CUDA device was found, and LIBVAR_REQUIRE_CUDA=1 asks for one");
  }
  static const bool said = [] {
    std::cerr << "cuda tests skipped: no CUDA device was found (LIBVAR_REQUIRE_CUDA=1 makes this a "
                 "failure)\n";
    return true;
  }();
  (void)said;
  return false;
}

inline const std::vector<at::ScalarType> kDtypes = {at::kFloat, at::kHalf, at::kBFloat16};

inline at::Tensor on_gpu(const at::Tensor& tensor) {
  return tensor.to(at::kCUDA);
}

inline std::optional<at::Tensor> on_gpu(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(on_gpu(*tensor)) : std::nullopt;
}

inline double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0.0;
  return (a.to(at::kCPU, at::kDouble) - b.to(at::kCPU, at::kDouble)).abs().max().item<double>();
}

/// Both devices round the same float32 result, give or take its error: one unit in the last place
/// of the largest value.
inline double unit_of(at::ScalarType dtype) {
  return dtype == at::kHalf ? 0x1p-10 : dtype == at::kBFloat16 ? 0x1p-7 : 0.0;
}

inline at::Tensor cut(const at::Tensor& tensor, std::int64_t dim, std::int64_t begin,
                      std::int64_t end) {
  return tensor.slice(dim, begin, end);
}

struct Tokens {
  at::Tensor sink_scores;
  at::Tensor visual_mask;
};

/// Text, an image, text; BOS and every 9th patch are sinks.
inline Tokens make_tokens(std::int64_t batch, std::int64_t num_keys) {
  const at::Tensor position = at::arange(num_keys);
  const at::Tensor visual = at::bitwise_and(position >= num_keys / 8, position < num_keys * 3 / 4);
  const at::Tensor sink = at::where(visual, (position % 9).eq(4), position.eq(0));
  const at::Tensor phi = at::where(sink, at::full({num_keys}, 30.0f), at::full({num_keys}, 1.0f));
  return {phi.expand({batch, num_keys}).contiguous(),
          visual.expand({batch, num_keys}).contiguous()};
}

inline libvar::RedistributionRule rule_with(float rho, float p, float min_visual_mass) {
  libvar::RedistributionRule rule;
  rule.rho = rho;
  rule.p = p;
  rule.min_visual_mass = min_visual_mass;
  return rule;
}

}  // namespace libvar::test
