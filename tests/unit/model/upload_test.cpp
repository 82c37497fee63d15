#include "upload.h"

#include <ATen/ops/equal.h>
#include <ATen/ops/zeros.h>

#include <cstdint>
#include <string>
#include <vector>

#include "unit/model/tiny_decoder.h"
#include "weights.h"

#include "unit/ops/cuda_support.h"  // last, with catch.h: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;

namespace {

/// Copies of tensors that are smaller than a buffer, as large, and larger than many.
void check_upload(at::Device device) {
  Upload upload(device, 1000);
  std::vector<at::Tensor> sources, copies;
  std::uint32_t seed = 1;
  for (const std::int64_t size : {0, 1, 3, 250, 251, 500, 12345}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kChar}) {
      sources.push_back(random_tensor({size, 1}, seed++).mul(50).to(dtype));
      copies.push_back(upload.tensor(sources.back()));
    }
  }
  for (std::size_t i = 0; i < sources.size(); ++i) {
    CAPTURE(i);
    CHECK(copies[i].device().type() == device.type());
    CHECK(copies[i].sizes() == sources[i].sizes());
    CHECK(at::equal(copies[i].cpu(), sources[i]));
  }
  const at::Tensor all = at::zeros({4, 300}, device);
  const at::Tensor rows = random_tensor({2, 300}, 99);
  upload.copy(all.narrow(0, 1, 2), rows);
  CHECK(at::equal(all.narrow(0, 1, 2).cpu(), rows));
  CHECK(all[0].abs().sum().item<float>() + all[3].abs().sum().item<float>() == 0);
  CHECK_THROWS(upload.copy(all.t(), at::zeros({300, 4})));
  CHECK_THROWS(upload.copy(all, at::zeros({4, 300}, at::kDouble)));
}

}  // namespace

TEST_CASE("uploads pass through buffers of any size", "[weights]") {
  check_upload(at::kCPU);
}

TEST_CASE("uploads to a GPU pass through buffers of any size", "[.][cuda]") {
  if (!libvar::test::have_gpu()) return;
  check_upload(at::Device(at::kCUDA, 0));
}

TEST_CASE("a reader says what it reads next and what it has copied", "[weights]") {
  TensorMap tensors = {{"a", at::zeros({2, 3}, at::kHalf)}, {"b", at::zeros({5})}};
  std::vector<std::string> events;
  const auto note = [&](const char* what) {
    return [&events, what](const at::Tensor& tensor) {
      events.push_back(what + std::to_string(tensor.numel()));
    };
  };
  std::int64_t done = 0, total = 0;
  WeightReader::Hooks hooks{note("read "), note("copied "), [&](std::int64_t d, std::int64_t t) {
                              CHECK(d > done);
                              done = d;
                              total = t;
                            }};
  ComputeTarget target;
  const bool copies = GENERATE(false, true);
  target.copies_weights = copies;
  const WeightReader reader(tensors, target, hooks);
  reader.read("a", {2, 3});  // another dtype: always a copy
  const at::Tensor b = reader.read("b", {5});
  CHECK(b.is_same(tensors.at("b")) == !copies);
  std::vector<std::string> expected = {"read 6", "copied 6", "read 5"};
  if (copies) expected.push_back("copied 5");
  CHECK(events == expected);
  CHECK(done == 12 + 20);
  CHECK(total == 12 + 20);
}
