// The linear maps of a decoder's step beside at::linear and beside a plain read of the same bytes.

#include <ATen/ATen.h>

#include <cmath>
#include <memory>

#include "kernels/cases.h"
#include "kernels/machine.h"
#include "read_all.h"
#include "libvar/ops.h"
#include "reference/linear_oracle.h"

namespace libvar::bench {
namespace {

constexpr std::int64_t kOutputsChecked = 64;

struct LinearCase {
  std::int64_t rows = 1, out_features = 4096, in_features = 4096;
  at::ScalarType dtype = at::kBFloat16;
  bool is_int8 = false;  ///< the weight
  int rounds = 101;
};

struct LinearWork {
  std::vector<at::Tensor> weights;
  at::Tensor input, scale, peer_scale, read;
  reference::LinearResult expected;  ///< of the first outputs of set 0
  double unit = 0.0;

  [[nodiscard]] double error_share(const at::Tensor& out) const {
    if (!at::isfinite(out).all().item<bool>()) return INFINITY;
    const at::Tensor host = out.narrow(-1, 0, std::min(kOutputsChecked, out.size(-1)))
                                .to(at::kCPU, at::kDouble)
                                .contiguous();
    const double* actual = host.const_data_ptr<double>();
    double worst = 0.0;
    for (std::size_t i = 0; i < expected.output.size(); ++i) {
      const double allowed = 1e-5 * expected.magnitude[i] + unit * std::fabs(expected.output[i]);
      const double error = std::fabs(actual[i] - expected.output[i]) / allowed;
      if (!(error <= worst)) worst = error;
    }
    return worst;
  }
};

std::vector<double> doubles(const at::Tensor& tensor) {
  const at::Tensor host = tensor.to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

Workload prepare(const Options& options, const LinearCase& c) {
  auto work = std::make_shared<LinearWork>();
  const auto wide = at::TensorOptions(options.device).dtype(at::kFloat);
  const at::ScalarType weight_dtype = c.is_int8 ? at::kChar : c.dtype;
  const double bytes = static_cast<double>(
      c.out_features * c.in_features * static_cast<std::int64_t>(at::elementSize(weight_dtype)));
  Workload result;
  result.sets = options.tiny ? 2 : cold_sets(options.device, static_cast<std::size_t>(bytes));
  for (std::size_t i = 0; i < result.sets; ++i) {
    const at::Tensor weight = at::randn({c.out_features, c.in_features}, wide);
    work->weights.push_back(
        (c.is_int8 ? (weight * 30).round_().clamp_(-127, 127) : weight).to(weight_dtype));
  }
  work->input = at::randn({c.rows, c.in_features}, wide).to(c.dtype);
  work->read = at::zeros({1}, at::kLong);
  const std::int64_t checked = std::min(kOutputsChecked, c.out_features);
  at::Tensor weight = work->weights.front().narrow(0, 0, checked);
  if (c.is_int8) {
    work->scale = at::rand({c.out_features}, wide) + 0.5;
    work->peer_scale = work->scale.to(c.dtype);
    weight = weight.to(at::kDouble) * work->scale.narrow(0, 0, checked).unsqueeze(1);
  }
  work->expected = reference::linear(doubles(work->input), doubles(weight), {}, c.in_features);
  work->unit = c.dtype == at::kFloat ? 0x1p-22 : c.dtype == at::kHalf ? 0x1p-10 : 0x1p-7;
  const auto add = [&](const std::string& name, bool ours, auto run) {
    result.variants.push_back(
        {name, [work, run](std::size_t set) { return run(work->weights[set]); },
         [work](const at::Tensor& out) { return work->error_share(out); }, ours});
  };
  const auto own = [work, is_int8 = c.is_int8](const at::Tensor& weight) {
    return skinny_linear(work->input, weight, std::nullopt,
                         is_int8 ? std::optional(work->scale) : std::nullopt);
  };
  add("libvar", true, own);
  add("libvar_again", true, own);
  const std::string peer = c.is_int8 ? "int8pack" : "linear";
  // PyTorch's int8 kernel takes whole vectors only and crashes on the tiny sizes.
  if (!c.is_int8 || !options.tiny) {
    add(peer, false, [work, is_int8 = c.is_int8](const at::Tensor& weight) {
      return is_int8 ? at::_weight_int8pack_mm(work->input, weight, work->peer_scale)
                     : at::linear(work->input, weight);
    });
  }
  if (!options.device.is_cuda()) {
    const auto read = [work](std::size_t set) {
      const at::Tensor& weight = work->weights[set];
      work->read.fill_(
          static_cast<std::int64_t>(read_all(weight.const_data_ptr(), weight.nbytes())));
      return work->read;
    };
    result.variants.push_back({"read", read, {}});
  }
  result.data = work;
  result.facts["bytes"] = bytes;
  const bool is_gemv = c.rows == 1 && !options.tiny && options.grid == "cpu";
  const bool has_bar = is_gemv && !c.is_int8;  // int8 is bound by its conversion to float32
  result.ratios = {{"libvar", "read", {}, has_bar ? std::optional(1.10) : std::nullopt, {}},
                   {peer, "libvar", {}, {}, is_gemv ? std::optional(1.00) : std::nullopt}};
  return result;
}

void add_case(const Options& options, LinearCase c) {
  const std::string name =
      "skinny_linear/" + std::string(options.device.is_cuda() ? "cuda/" : "cpu/") +
      dtype_name(c.dtype) + (c.is_int8 ? "_int8" : "") + "/rows:" + std::to_string(c.rows) +
      "/out:" + std::to_string(c.out_features) + "/in:" + std::to_string(c.in_features);
  if (options.tiny) {
    c.out_features /= 64;
    c.in_features = c.in_features / 64 + 7;
  }
  register_case(options, {name, c.rounds, [options, c] { return prepare(options, c); }});
}

}  // namespace

void register_skinny_linear(const Options& options) {
  // LLaVA-1.5-7B: query, key, value and output; the three first in one buffer; gate and up; down;
  // the head.
  const std::pair<std::int64_t, std::int64_t> shapes[] = {
      {4096, 4096}, {12288, 4096}, {11008, 4096}, {4096, 11008}, {32064, 4096}};
  for (const auto& [out_features, in_features] : shapes)
    add_case(options, {1, out_features, in_features, at::kBFloat16});
  for (const std::int64_t rows : {2, 4, 8}) add_case(options, {rows, 11008, 4096, at::kBFloat16});
  for (const auto& [out_features, in_features] : shapes)
    add_case(options, {1, out_features, in_features, at::kBFloat16, true});
  for (const std::int64_t rows : {4, 8})
    add_case(options, {rows, 11008, 4096, at::kBFloat16, true});
  for (const at::ScalarType dtype : {at::kHalf, at::kFloat}) {
    for (const std::int64_t rows : {1, 4, 8}) add_case(options, {rows, 11008, 4096, dtype});
  }
}

}  // namespace libvar::bench
