// The layer's RMSNorm with phi beside the same kernel without it (no sink dimensions) and beside
// ATen operators.

#include <ATen/ATen.h>

#include <cmath>
#include <memory>

#include "kernels/cases.h"
#include "libvar/ops.h"
#include "reference/norms_oracle.h"

namespace libvar::bench {
namespace {

constexpr double kEps = 1e-5;
constexpr std::int64_t kRowsChecked = 64;

struct NormCase {
  std::int64_t rows = 1, hidden_size = 4096;
  at::ScalarType dtype = at::kBFloat16;
  int rounds = 301;
  bool bars = true;
};

struct NormWork {
  std::vector<at::Tensor> hidden;
  at::Tensor weight, sink_dims, no_dims;
  std::vector<double> normed, phi;  ///< of the first rows of set 0

  [[nodiscard]] double error_share(const at::Tensor& out) const {
    if (!at::isfinite(out).all().item<bool>()) return INFINITY;
    const double unit = out.scalar_type() == at::kFloat  ? 0x1p-20
                        : out.scalar_type() == at::kHalf ? 0x1p-9
                                                         : 0x1p-6;
    const at::Tensor host = out.to(at::kCPU, at::kDouble).contiguous();
    const double* actual = host.const_data_ptr<double>();
    double worst = 0.0;
    for (std::size_t i = 0; i < normed.size(); ++i) {
      const double error = std::fabs(actual[i] - normed[i]) / (unit * std::fabs(normed[i]) + 1e-6);
      if (!(error <= worst)) worst = error;
    }
    return worst;
  }
};

/// Normal values, one row in seven with massive activations in the sink dimensions.
at::Tensor random_hidden(const NormCase& c, const at::Device& device, const at::Tensor& sink_dims) {
  const at::Tensor hidden =
      at::randn({c.rows, c.hidden_size}, at::TensorOptions(device).dtype(at::kFloat));
  for (std::int64_t i = 0; i < c.rows; i += 7)
    hidden.narrow(0, i, 1).index_fill_(1, sink_dims, 500.0);
  return hidden.to(c.dtype);
}

void fill_expected(NormWork& work, const NormCase& c) {
  const at::Tensor rows = work.hidden.front().narrow(0, 0, std::min(kRowsChecked, c.rows));
  const auto doubles = [](const at::Tensor& tensor) {
    const at::Tensor host = tensor.to(at::kCPU, at::kDouble).contiguous();
    return std::vector<double>(host.const_data_ptr<double>(),
                               host.const_data_ptr<double>() + host.numel());
  };
  const at::Tensor dims = work.sink_dims.to(at::kCPU).contiguous();
  const std::vector<std::int64_t> sink_dims(dims.const_data_ptr<std::int64_t>(),
                                            dims.const_data_ptr<std::int64_t>() + dims.numel());
  const auto round = [&c](double value) -> double {
    const auto single = static_cast<float>(value);
    if (c.dtype == at::kHalf) return static_cast<float>(c10::Half(single));
    return c.dtype == at::kBFloat16 ? static_cast<float>(c10::BFloat16(single)) : single;
  };
  const auto result = reference::rms_norm(doubles(rows), {}, doubles(work.weight), sink_dims,
                                          c.hidden_size, kEps, round);
  work.normed = result.normed;
  work.phi = result.phi;
}

/// As transformers computes it.
at::Tensor eager_norm(const at::Tensor& hidden, const at::Tensor& weight) {
  const at::Tensor wide = hidden.to(at::kFloat);
  return weight * (wide * at::rsqrt(wide.square().mean(-1, true) + kEps)).to(hidden.scalar_type());
}

/// phi in ATen operators, as a hook before the norm would compute it.
at::Tensor eager_phi(const at::Tensor& hidden, const at::Tensor& sink_dims) {
  const at::Tensor wide = hidden.to(at::kFloat);
  return wide.index_select(-1, sink_dims).abs().amax(-1) * at::rsqrt(wide.square().mean(-1) + kEps);
}

Workload prepare(const Options& options, const NormCase& c) {
  auto work = std::make_shared<NormWork>();
  const auto longs = at::TensorOptions(options.device).dtype(at::kLong);
  work->sink_dims =
      at::tensor({c.hidden_size / 3, c.hidden_size / 2}, at::kLong).to(options.device);
  work->no_dims = at::empty({0}, longs);
  work->weight =
      (at::rand({c.hidden_size}, at::TensorOptions(options.device).dtype(at::kFloat)) + 0.5)
          .to(c.dtype);
  const double bytes = static_cast<double>(c.rows * c.hidden_size *
                                           static_cast<std::int64_t>(at::elementSize(c.dtype)));
  Workload result;
  result.sets = options.tiny ? 2 : cold_sets(options.device, static_cast<std::size_t>(2.0 * bytes));
  for (std::size_t i = 0; i < result.sets; ++i)
    work->hidden.push_back(random_hidden(c, options.device, work->sink_dims));
  fill_expected(*work, c);
  const auto add = [&](const std::string& name, bool ours, auto run) {
    result.variants.push_back(
        {name, [work, run](std::size_t set) { return run(work->hidden[set]); },
         [work](const at::Tensor& out) { return work->error_share(out); }, ours});
  };
  const auto with_phi = [work](const at::Tensor& hidden) {
    return std::get<0>(rms_norm_sink_scores(hidden, work->weight, work->sink_dims, kEps));
  };
  add("libvar", true, with_phi);
  add("libvar_again", true, with_phi);
  add("libvar_no_phi", true, [work](const at::Tensor& hidden) {
    return std::get<0>(rms_norm_sink_scores(hidden, work->weight, work->no_dims, kEps));
  });
  add("eager", false,
      [work](const at::Tensor& hidden) { return eager_norm(hidden, work->weight); });
  add("eager_with_phi", false, [work](const at::Tensor& hidden) {
    eager_phi(hidden, work->sink_dims);
    return eager_norm(hidden, work->weight);
  });
  result.data = work;
  result.facts["bytes"] = 2.0 * bytes;
  const auto bar = c.bars ? std::optional(1.05) : std::nullopt;
  result.ratios = {{"libvar", "libvar_no_phi", {}, options.grid == "cuda" ? std::nullopt : bar, {}},
                   {"eager", "libvar", {}, {}, {}},
                   {"eager_with_phi", "libvar", {}, {}, {}}};
  return result;
}

}  // namespace

void register_norms(const Options& options) {
  for (const std::int64_t rows : {1, 640}) {
    for (const at::ScalarType dtype : {at::kBFloat16, at::kFloat}) {
      NormCase c;
      c.rows = rows;
      c.dtype = dtype;
      c.rounds = options.grid == "cuda" ? 51 : rows == 1 ? 2001 : 301;
      const std::string name = "rms_norm/" +
                               std::string(options.device.is_cuda() ? "cuda/" : "cpu/") +
                               dtype_name(dtype) + "/rows:" + std::to_string(rows) +
                               "/hidden:" + std::to_string(c.hidden_size);
      if (options.tiny) {
        c.rows = std::min<std::int64_t>(rows, 3);
        c.hidden_size = 200;
      }
      register_case(options, {name, c.rounds, [options, c] { return prepare(options, c); }});
    }
  }
}

}  // namespace libvar::bench
