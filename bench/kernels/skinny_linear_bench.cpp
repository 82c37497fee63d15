// The linear maps of a decoder's step beside at::linear and beside a plain read (CPU) or a copy
// (GPU) of the same bytes; the gated half of its MLP likewise.

#include <ATen/ATen.h>

#include <cmath>
#include <memory>

#include "kernels/cases.h"
#include "kernels/machine.h"
#include "libvar/ops.h"
#include "read_all.h"
#include "reference/linear_oracle.h"

namespace libvar::bench {
namespace {

constexpr std::int64_t kOutputsChecked = 64;

struct LinearCase {
  std::int64_t rows = 1, out_features = 4096, in_features = 4096;
  at::ScalarType dtype = at::kBFloat16;
  bool is_int8 = false;   ///< the weight
  bool is_gated = false;  ///< skinny_swiglu: twice out_features rows of weight
  int rounds = 101;
};

struct LinearWork {
  std::vector<at::Tensor> weights;
  at::Tensor input, scale, peer_scale, read, copy;
  std::vector<double> expected, allowed;  ///< of the first outputs of set 0

  [[nodiscard]] double error_share(const at::Tensor& out) const {
    if (!at::isfinite(out).all().item<bool>()) return INFINITY;
    const at::Tensor host = out.narrow(-1, 0, std::min(kOutputsChecked, out.size(-1)))
                                .to(at::kCPU, at::kDouble)
                                .contiguous();
    const double* actual = host.const_data_ptr<double>();
    double worst = 0.0;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double error = std::fabs(actual[i] - expected[i]) / allowed[i];
      if (!(error <= worst)) worst = error;
    }
    return worst;
  }
};

std::vector<double> doubles(const at::Tensor& tensor) {
  const at::Tensor host = tensor.to(at::kCPU, at::kDouble).contiguous();
  return {host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel()};
}

/// Fills in what the first outputs of set 0 have to be, and how far off they may be.
void fill_expected(LinearWork& work, const LinearCase& c) {
  const double unit = c.dtype == at::kFloat ? 0x1p-22 : c.dtype == at::kHalf ? 0x1p-10 : 0x1p-7;
  const auto map = [&](std::int64_t begin) {
    const std::int64_t checked = std::min(kOutputsChecked, c.out_features);
    at::Tensor weight = work.weights.front().narrow(0, begin, checked).to(at::kDouble);
    if (c.is_int8) weight = weight * work.scale.narrow(0, begin, checked).unsqueeze(1);
    return reference::linear(doubles(work.input), doubles(weight), {}, c.in_features);
  };
  const auto error_of = [unit](const reference::LinearResult& map, std::size_t i) {
    return 1e-5 * map.magnitude[i] + unit * std::fabs(map.output[i]);
  };
  const reference::LinearResult first = map(0);
  work.expected = first.output;
  for (std::size_t i = 0; i < first.output.size(); ++i) work.allowed.push_back(error_of(first, i));
  if (!c.is_gated) return;
  const reference::LinearResult second = map(c.out_features);
  const auto result = reference::swiglu(first, second, [](double x) { return x; });
  work.expected = result.output;
  for (std::size_t i = 0; i < work.expected.size(); ++i) {
    work.allowed[i] = result.gate_slope[i] * work.allowed[i] +
                      result.up_slope[i] * error_of(second, i) +
                      2 * unit * std::fabs(work.expected[i]) + 1e-30;
  }
}

at::Tensor own(const LinearWork& work, const LinearCase& c, const at::Tensor& weight) {
  if (!c.is_gated) {
    return skinny_linear(work.input, weight, std::nullopt,
                         c.is_int8 ? std::optional(work.scale) : std::nullopt);
  }
  const auto half = [&](const at::Tensor& tensor, int i) {
    return tensor.narrow(0, i * c.out_features, c.out_features);
  };
  const auto scale = [&](int i) {
    return c.is_int8 ? std::optional(half(work.scale, i)) : std::nullopt;
  };
  return skinny_swiglu(work.input, half(weight, 0), half(weight, 1), std::nullopt, std::nullopt,
                       scale(0), scale(1));
}

at::Tensor peer(const LinearWork& work, const LinearCase& c, const at::Tensor& weight) {
  const at::Tensor out = c.is_int8 ? at::_weight_int8pack_mm(work.input, weight, work.peer_scale)
                                   : at::linear(work.input, weight);
  if (!c.is_gated) return out;
  at::Tensor gate = out.narrow(-1, 0, c.out_features);
  return at::silu_(gate).mul_(out.narrow(-1, c.out_features, c.out_features));
}

/// Adds a plain read of the weight, or on a GPU's list a copy that moves as many bytes.
std::string add_bound(const Options& options, const std::shared_ptr<LinearWork>& work,
                      Workload& result) {
  if (options.grid == "cuda") {
    const auto copy = [work](std::size_t set) {
      const at::Tensor bytes = work->weights[set].view(at::kChar).flatten();
      const std::int64_t half = bytes.size(0) / 2;
      return work->copy.copy_(bytes.narrow(0, 0, half));
    };
    const auto half = static_cast<std::int64_t>(work->weights.front().nbytes() / 2);
    work->copy = at::empty({half}, at::TensorOptions(options.device).dtype(at::kChar));
    result.variants.push_back({"copy", copy, {}});
    return "copy";
  }
  work->read = at::zeros({1}, at::kLong);
  const auto read = [work](std::size_t set) {
    const at::Tensor& weight = work->weights[set];
    work->read.fill_(static_cast<std::int64_t>(read_all(weight.const_data_ptr(), weight.nbytes())));
    return work->read;
  };
  result.variants.push_back({"read", read, {}});
  return "read";
}

Workload prepare(const Options& options, const LinearCase& c) {
  auto work = std::make_shared<LinearWork>();
  const auto wide = at::TensorOptions(options.device).dtype(at::kFloat);
  const at::ScalarType weight_dtype = c.is_int8 ? at::kChar : c.dtype;
  const std::int64_t weight_rows = c.is_gated ? 2 * c.out_features : c.out_features;
  const double bytes = static_cast<double>(
      weight_rows * c.in_features * static_cast<std::int64_t>(at::elementSize(weight_dtype)));
  const double size = std::sqrt(static_cast<double>(c.in_features));  // of outputs: about 1
  Workload result;
  result.sets = options.tiny ? 2 : cold_sets(options.device, static_cast<std::size_t>(bytes));
  for (std::size_t i = 0; i < result.sets; ++i) {
    const at::Tensor weight = at::randn({weight_rows, c.in_features}, wide);
    work->weights.push_back(
        (c.is_int8 ? (weight * 30).round_().clamp_(-127, 127) : weight / size).to(weight_dtype));
  }
  work->input = at::randn({c.rows, c.in_features}, wide).to(c.dtype);
  if (c.is_int8) {
    work->scale = (at::rand({weight_rows}, wide) + 0.5) / (30.0 * size);
    work->peer_scale = work->scale.to(c.dtype);
  }
  fill_expected(*work, c);
  const auto add = [&](const std::string& name, bool ours, auto run) {
    result.variants.push_back(
        {name, [work, c, run](std::size_t set) { return run(*work, c, work->weights[set]); },
         [work](const at::Tensor& out) { return work->error_share(out); }, ours});
  };
  add("libvar", true, own);
  add("libvar_again", true, own);
  const std::string peer_name = c.is_int8 ? "int8pack" : "linear";
  // PyTorch's int8 kernel takes whole vectors only and crashes on the tiny sizes.
  if (!c.is_int8 || !options.tiny) add(peer_name, false, peer);
  const std::string bound = add_bound(options, work, result);
  result.data = work;
  result.facts["bytes"] = bytes;
  const bool is_gemv = c.rows == 1 && !options.tiny && options.grid == "cpu";
  const bool has_bar = is_gemv && !c.is_int8;  // int8 is bound by its conversion to float32
  result.ratios = {{"libvar", bound, {}, has_bar ? std::optional(1.10) : std::nullopt, {}},
                   {peer_name, "libvar", {}, {}, is_gemv ? std::optional(1.00) : std::nullopt}};
  return result;
}

void add_case(const Options& options, LinearCase c) {
  const std::string name = std::string(c.is_gated ? "skinny_swiglu/" : "skinny_linear/") +
                           (options.device.is_cuda() ? "cuda/" : "cpu/") + dtype_name(c.dtype) +
                           (c.is_int8 ? "_int8" : "") + "/rows:" + std::to_string(c.rows) +
                           "/out:" + std::to_string(c.out_features) +
                           "/in:" + std::to_string(c.in_features);
  if (options.tiny) {
    c.out_features /= 64;
    c.in_features = c.in_features / 64 + 7;
  }
  register_case(options, {name, c.rounds, [options, c] { return prepare(options, c); }});
}

struct Shape {
  std::int64_t out_features, in_features;
};

// LLaVA-1.5-7B: query, key, value and output; the three first in one buffer; gate and up; down;
// the head.
constexpr Shape kLlava[] = {
    {4096, 4096}, {12288, 4096}, {11008, 4096}, {4096, 11008}, {32064, 4096}};
// Qwen2-VL-7B: output; query, key and value in one buffer; gate and up; down; the head.
constexpr Shape kQwen[] = {
    {3584, 3584}, {4608, 3584}, {18944, 3584}, {3584, 18944}, {152064, 3584}};

/// What decides which shapes our kernels take (decision 0019).
void register_on_gpu(const Options& options) {
  constexpr int kRounds = 51;
  for (const auto& shapes : {kLlava, kQwen}) {
    for (int i = 0; i < 5; ++i) {
      const auto [out_features, in_features] = shapes[i];
      for (const std::int64_t rows : {1, 4}) {
        for (const bool is_int8 : {false, true}) {
          LinearCase c = {rows, out_features, in_features, at::kBFloat16, is_int8, false, kRounds};
          add_case(options, c);
          c.is_gated = i == 2;
          if (c.is_gated) add_case(options, c);
        }
      }
    }
  }
  for (const std::int64_t rows : {2, 8}) {
    for (const bool is_int8 : {false, true})
      add_case(options, {rows, 11008, 4096, at::kBFloat16, is_int8, false, kRounds});
  }
  for (const at::ScalarType dtype : {at::kHalf, at::kFloat}) {
    for (const std::int64_t rows : {1, 4, 8})
      add_case(options, {rows, 11008, 4096, dtype, false, false, kRounds});
  }
}

}  // namespace

void register_skinny_linear(const Options& options) {
  if (options.grid == "cuda") return register_on_gpu(options);
  for (const auto& [out_features, in_features] : kLlava)
    add_case(options, {1, out_features, in_features, at::kBFloat16});
  for (const std::int64_t rows : {2, 4, 8}) add_case(options, {rows, 11008, 4096, at::kBFloat16});
  for (const auto& [out_features, in_features] : kLlava)
    add_case(options, {1, out_features, in_features, at::kBFloat16, true});
  for (const std::int64_t rows : {4, 8})
    add_case(options, {rows, 11008, 4096, at::kBFloat16, true});
  for (const bool is_int8 : {false, true})
    add_case(options, {1, 11008, 4096, at::kBFloat16, is_int8, true});
  for (const at::ScalarType dtype : {at::kHalf, at::kFloat}) {
    for (const std::int64_t rows : {1, 4, 8}) add_case(options, {rows, 11008, 4096, dtype});
  }
}

}  // namespace libvar::bench
