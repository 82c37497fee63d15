// redistribute on probabilities beside the same sequence of ATen operators, and beside a copy.

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "kernels/attention_inputs.h"
#include "kernels/attention_peers.h"
#include "kernels/cases.h"
#include "reference/redistribute_oracle.h"

namespace libvar::bench {
namespace {

constexpr double kOwnMargin = 1e-3;
constexpr double kEagerMargin = 3e-2;  // masses of the low-precision sequence are rounded
constexpr std::int64_t kRowsChecked = 2048;

struct RedistributeShape {
  std::int64_t num_heads = 32, num_rows = 64, num_keys = 640;
  at::ScalarType dtype = at::kBFloat16;
};

struct RedistributeCase {
  RedistributeShape shape;
  int rounds = 301;
  bool bars = true;
};

struct ProbabilitySet {
  at::Tensor probs, sink_scores, visual_mask;
};

struct RedistributeWork {
  std::vector<ProbabilitySet> sets;
  RedistributionRule rule;
  std::vector<double> expected;  ///< of every `step`th row of set 0
  std::vector<double> margin;
  std::int64_t num_keys = 0;
  std::int64_t step = 1;

  /// Largest error of a row, in absolute probabilities, as a share of what the dtype's rounding
  /// allows.
  [[nodiscard]] double error_share(const at::Tensor& out, double least_margin) const {
    if (!at::isfinite(out).all().item<bool>()) return INFINITY;
    const auto rows = static_cast<std::int64_t>(margin.size());
    const at::Tensor host = out.view({-1, num_keys})
                                .slice(0, 0, std::nullopt, step)
                                .to(at::kCPU, at::kDouble)
                                .contiguous();
    const double* actual = host.const_data_ptr<double>();
    const double unit = out.scalar_type() == at::kFloat  ? 0x1p-20
                        : out.scalar_type() == at::kHalf ? 0x1p-9
                                                         : 0x1p-6;
    double worst = 0.0;
    for (std::int64_t i = 0; i < rows * num_keys; ++i) {
      if (margin[static_cast<std::size_t>(i / num_keys)] < least_margin) continue;
      const double exact = expected[static_cast<std::size_t>(i)];
      const double error = std::fabs(actual[i] - exact) / (unit * std::fabs(exact) + 1e-7);
      if (!(error <= worst)) worst = error;
    }
    return worst;
  }
};

/// Probabilities of rows whose heads give their sinks more or less.
ProbabilitySet random_probabilities(const RedistributeShape& s, const at::Device& device,
                                    std::uint64_t seed) {
  AttentionShape like;
  like.num_heads = like.num_kv_heads = s.num_heads;
  like.num_rows = 1;
  like.num_keys = s.num_keys;
  like.head_dim = 16;
  like.dtype = at::kFloat;
  const AttentionSet set = random_attention_set(like, device, seed);
  const at::Tensor boost = at::matmul(set.in.query, set.in.key.transpose(2, 3)) * set.in.scale;
  const at::Tensor noise = at::randn({1, s.num_heads, s.num_rows, s.num_keys}, boost.options());
  return {at::softmax(noise.mul_(0.7).add_(boost), -1).to(s.dtype), set.in.sink_scores,
          set.in.visual_mask};
}

void fill_expected(RedistributeWork& work, Workload& result) {
  const ProbabilitySet& set = work.sets.front();
  const at::Tensor flat = set.probs.view({-1, set.probs.size(3)});
  work.step = (flat.size(0) + kRowsChecked - 1) / kRowsChecked;
  const at::Tensor rows = flat.slice(0, 0, std::nullopt, work.step);
  reference::RedistributeProblem problem;
  problem.num_rows = static_cast<int>(rows.size(0));
  problem.num_keys = static_cast<int>(rows.size(1));
  const at::Tensor host = rows.to(at::kCPU, at::kDouble).contiguous();
  problem.probs.assign(host.const_data_ptr<double>(), host.const_data_ptr<double>() + host.numel());
  const at::Tensor phi = set.sink_scores.to(at::kCPU).contiguous();
  problem.sink_scores.assign(phi.const_data_ptr<float>(),
                             phi.const_data_ptr<float>() + phi.numel());
  const at::Tensor visual = set.visual_mask.to(at::kCPU, at::kByte).contiguous();
  problem.visual_mask.assign(visual.const_data_ptr<std::uint8_t>(),
                             visual.const_data_ptr<std::uint8_t>() + visual.numel());
  problem.rule = work.rule;
  const auto oracle = reference::redistribute(problem);
  work.expected = oracle.probs;
  work.margin = oracle.margin;
  const auto selected = std::count(oracle.selected.begin(), oracle.selected.end(), 1);
  result.facts["selected_share"] =
      static_cast<double>(selected) / static_cast<double>(oracle.selected.size());
  work.num_keys = rows.size(1);
}

Workload prepare(const Options& options, const RedistributeCase& c) {
  auto work = std::make_shared<RedistributeWork>();
  const double elements =
      static_cast<double>(c.shape.num_heads * c.shape.num_rows * c.shape.num_keys);
  const double bytes = elements * static_cast<double>(at::elementSize(c.shape.dtype));
  Workload result;
  result.sets = options.tiny ? 2 : cold_sets(options.device, static_cast<std::size_t>(2.0 * bytes));
  for (std::size_t i = 0; i < result.sets; ++i) {
    work->sets.push_back(random_probabilities(c.shape, options.device, 1 + i));
  }
  fill_expected(*work, result);
  const auto add = [&](const std::string& name, bool ours, double margin, auto run) {
    result.variants.push_back(
        {name, [work, run](std::size_t set) { return run(work->sets[set]); },
         [work, margin](const at::Tensor& out) { return work->error_share(out, margin); }, ours});
  };
  const auto own = [work](const ProbabilitySet& set) {
    return redistribute(set.probs, set.sink_scores, set.visual_mask, std::nullopt, work->rule);
  };
  add("libvar", true, kOwnMargin, own);
  add("libvar_again", true, kOwnMargin, own);
  add("eager", false, kEagerMargin, [work](const ProbabilitySet& set) {
    return eager_redistribute(set.probs, set.sink_scores, set.visual_mask, work->rule);
  });
  if (c.shape.dtype != at::kFloat) {
    add("eager_low_precision", false, kEagerMargin, [work](const ProbabilitySet& set) {
      return eager_redistribute_low_precision(set.probs, set.sink_scores, set.visual_mask,
                                              work->rule);
    });
  }
  result.variants.push_back(
      {"copy", [work](std::size_t set) { return work->sets[set].probs.clone(); }, {}});
  result.data = work;
  result.facts["bytes"] = 2.0 * bytes;
  const auto bar = [&](double value) { return c.bars ? std::optional(value) : std::nullopt; };
  const bool cuda = options.grid == "cuda";
  result.ratios = {{"eager", "libvar", {}, {}, cuda ? std::nullopt : bar(4.0)},
                   {"eager_low_precision", "libvar", {}, {}, {}},
                   {"copy", "libvar", {}, {}, cuda && bytes >= 256e6 ? bar(0.85) : std::nullopt}};
  return result;
}

std::vector<RedistributeCase> grid(const Options& options) {
  const bool cuda = options.grid == "cuda";
  const std::vector<RedistributeShape> sizes =
      cuda ? std::vector<RedistributeShape>{{32, 1, 640}, {32, 640, 640}, {28, 512, 16384}}
           : std::vector<RedistributeShape>{{32, 64, 640}, {28, 64, 4096}};
  const std::vector<at::ScalarType> dtypes =
      cuda ? std::vector<at::ScalarType>{at::kBFloat16, at::kHalf, at::kFloat}
           : std::vector<at::ScalarType>{at::kBFloat16, at::kFloat};
  std::vector<RedistributeCase> cases;
  for (RedistributeShape s : sizes) {
    for (const at::ScalarType dtype : dtypes) {
      s.dtype = dtype;
      cases.push_back({s, cuda ? 51 : 301, true});
    }
  }
  return cases;
}

}  // namespace

void register_redistribute(const Options& options) {
  for (RedistributeCase c : grid(options)) {
    const RedistributeShape& s = c.shape;
    const std::string name =
        "redistribute/" + std::string(options.device.is_cuda() ? "cuda/" : "cpu/") +
        dtype_name(s.dtype) + "/heads:" + std::to_string(s.num_heads) +
        "/rows:" + std::to_string(s.num_rows) + "/keys:" + std::to_string(s.num_keys);
    if (options.tiny) {
      c.shape.num_heads = 3;
      c.shape.num_rows = std::min<std::int64_t>(s.num_rows, 5);
      c.shape.num_keys = 150;
    }
    register_case(options, {name, c.rounds, [options, c] { return prepare(options, c); }});
  }
}

}  // namespace libvar::bench
