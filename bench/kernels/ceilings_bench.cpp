// What the machine itself can do, measured in the same process as everything that is compared with
// it.

#include <ATen/ATen.h>

#include <cstdint>
#include <cstring>

#include "kernels/cases.h"
#include "kernels/machine.h"
#include "read_all.h"

namespace libvar::bench {
namespace {

at::Tensor random_bytes(const Options& options, std::int64_t bytes) {
  return at::randint(0, 1 << 30, {bytes / 8}, at::TensorOptions(options.device).dtype(at::kLong));
}

/// Copy of a buffer several times the cache; bytes read and written are counted.
Workload copy_workload(const Options& options) {
  const std::int64_t full =
      options.device.is_cuda() ? std::int64_t{4} << 30 : std::int64_t{256} << 20;
  const std::int64_t bytes = options.tiny ? 1 << 20 : full;
  const at::Tensor from = random_bytes(options, bytes);
  at::Tensor to = at::empty_like(from);
  Workload work;
  work.facts["bytes"] = 2.0 * static_cast<double>(bytes);
  const bool on_cpu = !options.device.is_cuda();
  for (const char* name : {"copy", "copy_again"}) {
    work.variants.push_back(
        {name,
         [from, to, on_cpu](std::size_t) mutable {
           // Not copy_: captured in a graph it is no kernel, and reaches two thirds of the rate.
           if (!on_cpu) return at::add_out(to, from, 0);
           std::memcpy(to.mutable_data_ptr(), from.const_data_ptr(), from.nbytes());
           return to;
         },
         [from](const at::Tensor& out) { return at::equal(out, from) ? 0.0 : 2.0; }});
  }
  return work;
}

Workload read_workload(const Options& options) {
  const std::int64_t bytes = options.tiny ? 1 << 20 : std::int64_t{256} << 20;
  const at::Tensor from = random_bytes(options, bytes);
  const at::Tensor result = at::zeros({1}, at::kLong);
  Workload work;
  work.facts["bytes"] = static_cast<double>(bytes);
  for (const char* name : {"read", "read_again"}) {
    work.variants.push_back({name,
                             [from, result](std::size_t) {
                               *result.mutable_data_ptr<std::int64_t>() = static_cast<std::int64_t>(
                                   read_all(from.const_data_ptr(), from.nbytes()));
                               return result;
                             },
                             {}});
  }
  return work;
}

Workload matmul_workload(const Options& options) {
  const std::int64_t full = options.device.is_cuda() ? 8192 : 1024;
  const std::int64_t size = options.tiny ? 64 : full;
  const auto wide = at::TensorOptions(options.device).dtype(at::kFloat);
  const at::Tensor a = at::randn({size, size}, wide).to(at::kBFloat16);
  const at::Tensor b = at::randn({size, size}, wide).to(at::kBFloat16);
  Workload work;
  work.facts["flops"] =
      2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  for (const char* name : {"matmul", "matmul_again"}) {
    work.variants.push_back({name, [a, b](std::size_t) { return at::matmul(a, b); }, {}});
  }
  return work;
}

}  // namespace

void register_ceilings(const Options& options) {
  const std::string device = options.device.is_cuda() ? "cuda" : "cpu";
  const int rounds = 51;
  register_case(options, {"ceiling/" + device + "/copy", rounds,
                          [options] { return copy_workload(options); }});
  if (!options.device.is_cuda()) {
    register_case(options, {"ceiling/" + device + "/read", rounds,
                            [options] { return read_workload(options); }});
  }
  register_case(options, {"ceiling/" + device + "/matmul_bf16", rounds,
                          [options] { return matmul_workload(options); }});
}

}  // namespace libvar::bench
