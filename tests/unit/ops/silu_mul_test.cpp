// silu_mul on the CPU equals PyTorch's operators bit for bit, and refuses what is wrong.

#include "unit/ops/support.h"

namespace libvar::test {
namespace {

// The arguments of one call, all right until a test changes one of them.
struct SiluMulCall {
  at::Device device;
  at::Tensor gate = at::ones({2, 4, 16}, device);
  at::Tensor up = at::ones({2, 4, 16}, device);
};

std::string value_error(const SiluMulCall& call) {
  return message_of<c10::ValueError>([&] { silu_mul(call.gate, call.up); });
}

std::string type_error(const SiluMulCall& call) {
  return message_of<c10::TypeError>([&] { silu_mul(call.gate, call.up); });
}

TEST_CASE("silu_mul equals its operators bit for bit", "[silu_mul]") {
  const at::Generator generator = seeded(800);
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t size : kSweepSizes) {
      INFO(type << ", F " << size);
      const at::Tensor both = at::randn({2, 3, 2 * size}, generator, at::kFloat).mul(3).to(type);
      const at::Tensor gate = both.narrow(-1, 0, size), up = both.narrow(-1, size, size);
      const at::Tensor before = both.clone();
      const auto check = [](const at::Tensor& x, const at::Tensor& y) {
        const at::Tensor out = silu_mul(x, y);
        CHECK(out.is_contiguous());
        CHECK(same_bits(out, at::silu(x).mul(y)));
      };
      check(gate, up);
      check(gate.transpose(0, 1), up.transpose(0, 1));
      check(gate[0][0], up[0][0]);
      check(gate[0].expand_as(gate), up);
      CHECK(same_bits(both, before));
    }
    CHECK(silu_mul(at::ones({0, 4}, type), at::ones({0, 4}, type)).sizes() ==
          at::IntArrayRef({0, 4}));
  }
}

TEST_CASE("silu_mul gives the numbers worked out by hand", "[silu_mul]") {
  // exp(-ln 3) is 1/3, so that silu is 3/4 of ln 3.
  const double ln3 = std::log(3.0);
  const at::Tensor gate = at::tensor({0.0, ln3, 30.0}, at::kFloat);
  const at::Tensor out = silu_mul(gate, at::tensor({5.0, 4.0 / ln3, -2.0}, at::kFloat));
  CHECK(largest_difference(out, {0.0, 3.0, -60.0}) <= 1e-6);
}

TEST_CASE("silu_mul refuses what its contract excludes", "[errors]") {
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kMeta)}) {
    INFO(device);
    const SiluMulCall good{device};
    SiluMulCall bad = good;
    CHECK(value_error(bad) == "no exception");
    bad.up = at::ones({2, 4, 15}, device);
    CHECK(value_error(bad) == "silu_mul: expected up of shape [2, 4, 16], got [2, 4, 15]");
    bad.up = at::ones({4, 16}, device);  // no broadcasting
    CHECK(value_error(bad) == "silu_mul: expected up of shape [2, 4, 16], got [4, 16]");
    bad.up = good.up.to(at::kHalf);
    CHECK(type_error(bad) == "silu_mul: expected up of dtype Float, got Half");
    bad.up = at::ones({2, 4, 32}, device).slice(2, 0, 32, 2);
    CHECK(value_error(bad) ==
          "silu_mul: expected up with a contiguous last dimension, got strides [128, 32, 2]");
    bad = good;
    bad.gate = at::ones({2, 16, 4}, device).transpose(1, 2);
    CHECK(value_error(bad) ==
          "silu_mul: expected gate with a contiguous last dimension, got strides [64, 1, 4]");
    bad.gate = at::ones({2, 0}, device);
    CHECK(value_error(bad) == "silu_mul: expected gate of shape [..., F] with F > 0, got [2, 0]");
    bad.gate = at::ones({}, device);
    CHECK(value_error(bad) == "silu_mul: expected gate of shape [..., F] with F > 0, got []");
    bad.gate = good.gate.to(at::kDouble);
    CHECK(type_error(bad) ==
          "silu_mul: expected gate of dtype Float, Half or BFloat16, got Double");
  }
  SiluMulCall mixed{at::kMeta};
  mixed.up = at::ones({2, 4, 16});
  CHECK(value_error(mixed) == "silu_mul: expected up on meta, got cpu");
}

}  // namespace
}  // namespace libvar::test
