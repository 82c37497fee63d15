// Attention without redistribution against the formula in double precision.

#include "plain_attention.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>

#include <cmath>
#include <limits>

#include "unit/ops/cuda_support.h"  // last, with catch.h: c10 has a CHECK of its own

using namespace libvar;

namespace {

at::Tensor formula(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                   bool is_causal, double scale) {
  const auto wide = [&](const at::Tensor& x) {
    return x.to(at::kCPU, at::kDouble).repeat_interleave(query.size(1) / x.size(1), 1);
  };
  at::Tensor scores = at::matmul(wide(query), wide(key).transpose(2, 3)).mul(scale);
  if (is_causal) {
    const at::Tensor later = at::ones({query.size(2), query.size(2)}, at::kBool).triu(1);
    scores = scores.masked_fill(later, -std::numeric_limits<double>::infinity());
  }
  return at::matmul(at::softmax(scores, -1), wide(value));
}

/// Heads as the decoder and the towers have them: rows that lie apart, keys of a longer cache.
void check_against_formula(at::Device device, at::ScalarType dtype, double bound) {
  for (const auto& [heads, kv_heads, size] :
       {std::array<std::int64_t, 3>{4, 4, 64}, {8, 2, 128}, {2, 2, 80}, {2, 1, 24}, {2, 2, 20}}) {
    for (const std::int64_t rows : {1, 37, 200}) {
      for (const bool is_causal : {false, true}) {
        CAPTURE(dtype, heads, kv_heads, size, rows, is_causal);
        const at::TensorOptions options = at::TensorOptions(device).dtype(dtype);
        const at::Tensor query = at::randn({1, rows, heads, size}, options).transpose(1, 2);
        const auto cache = [&] {
          return at::randn({1, kv_heads, rows + 9, size}, options).narrow(2, 0, rows);
        };
        const at::Tensor key = cache(), value = cache();
        const double scale = 1.0 / std::sqrt(static_cast<double>(size));
        const at::Tensor out = plain_attention(query, key, value, is_causal, scale);
        CHECK(out.scalar_type() == dtype);
        const at::Tensor want = formula(query, key, value, is_causal, scale);
        CHECK((out.to(at::kCPU, at::kDouble) - want).abs().max().item<double>() <= bound);
        if (is_causal) continue;
        CHECK(at::equal(plain_attention(query, key, value, false), out));
      }
    }
  }
}

}  // namespace

TEST_CASE("plain attention follows the formula", "[attention]") {
  check_against_formula(at::kCPU, at::kFloat, 1e-5);
  check_against_formula(at::kCPU, at::kBFloat16, 3e-2);
}

TEST_CASE("plain attention on a GPU follows the formula", "[.][cuda]") {
  if (!test::have_gpu()) return;
  check_against_formula(at::kCUDA, at::kFloat, 1e-4);
  check_against_formula(at::kCUDA, at::kHalf, 4e-3);
  check_against_formula(at::kCUDA, at::kBFloat16, 3e-2);
}
