// greedy_tokens on the CPU: numbers worked out by hand, and what it refuses.

#include <limits>

#include "unit/ops/support.h"

namespace libvar::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

TEST_CASE("greedy_tokens takes the lowest token of the largest logits", "[greedy_tokens]") {
  for (const at::ScalarType type : kDtypes) {
    INFO(type);
    const at::Tensor logits = at::tensor({1.0,        3.0,        2.0,        3.0,         //
                                          -5.0,       -7.0,       -5.0,       -kInfinity,  //
                                          0.0,        kNan,       9.0,        1.0,         //
                                          kInfinity,  0.0,        1.0,        2.0,         //
                                          -kInfinity, -kInfinity, -kInfinity, -kInfinity},
                                         at::kDouble)
                                  .to(type)
                                  .view({5, 4});
    const at::Tensor tokens = greedy_tokens(logits);
    CHECK(tokens.scalar_type() == at::kLong);
    CHECK(at::equal(tokens, at::tensor({1, 0, -1, -1, -1}, at::kLong)));
    CHECK(at::equal(greedy_tokens(logits.narrow(1, 2, 2)),
                    at::tensor({1, 0, 0, 1, -1}, at::kLong)));  // rows that lie apart
  }
  CHECK(greedy_tokens(at::ones({0, 4})).sizes() == at::IntArrayRef({0}));
}

TEST_CASE("greedy_tokens refuses what its contract excludes", "[errors]") {
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kMeta)}) {
    INFO(device);
    const auto value_error = [](const at::Tensor& logits) {
      return message_of<c10::ValueError>([&] { greedy_tokens(logits); });
    };
    CHECK(value_error(at::ones({2, 4}, device)) == "no exception");
    CHECK(value_error(at::ones({4}, device)) ==
          "greedy_tokens: expected logits of shape [B, V], got [4]");
    CHECK(value_error(at::ones({2, 0}, device)) ==
          "greedy_tokens: expected logits of shape [B, V] with V > 0, got [2, 0]");
    CHECK(value_error(at::ones({4, 2}, device).t()) ==
          "greedy_tokens: expected logits with a contiguous last dimension, got strides [1, 2]");
    CHECK(message_of<c10::TypeError>([&] {
            greedy_tokens(at::ones({2, 4}, device).to(at::kDouble));
          }) == "greedy_tokens: expected logits of dtype Float, Half or BFloat16, got Double");
  }
}

}  // namespace
}  // namespace libvar::test
