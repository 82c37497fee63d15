// attention beside the same kernel without redistribution, PyTorch's own attention and
// redistribution written with PyTorch's operators.

#include <ATen/ATen.h>

#include <memory>

#include "cpu/attention.h"
#include "kernels/attention_inputs.h"
#include "kernels/attention_peers.h"
#include "kernels/cases.h"
#include "kernels/cuda_plain.h"

namespace libvar::bench {
namespace {

// A row may be selected or not where the oracle is this close to its threshold: float32 sums in
// libvar, probabilities rounded to the dtype in eager code.
constexpr double kOwnMargin = 1e-3;
constexpr double kEagerMargin = 3e-2;
constexpr double kPeerTolerance = 8.0;  // of libvar's own bound, for the same reason

struct AttentionCase {
  AttentionShape shape;
  int rounds = 301;
  bool bars = true;  ///< a row of the table that issue 4 sets bars for
};

struct AttentionWork {
  AttentionShape shape;
  std::vector<AttentionSet> sets;
  std::unique_ptr<AttentionCheck> check;
  RedistributionRule rule, none;
  at::Tensor no_sinks, no_visual;

  Variant variant(const std::string& name, bool ours, bool redistributes,
                  std::function<at::Tensor(const AttentionSet&)> run) {
    const double margin = ours ? kOwnMargin : kEagerMargin;
    const double allowed = allowed_row_error(shape.dtype) * (ours ? 1.0 : kPeerTolerance);
    return {name, [this, run](std::size_t set) { return run(sets[set]); },
            [this, redistributes, margin, allowed](const at::Tensor& out) {
              return check->error_share(out, redistributes, margin, allowed);
            },
            ours};
  }
};

std::string name_of(const Options& options, const AttentionShape& s) {
  const auto number = [](std::int64_t value) { return std::to_string(value); };
  return "attention/" + std::string(options.device.is_cuda() ? "cuda/" : "cpu/") +
         dtype_name(s.dtype) + "/heads:" + number(s.num_heads) +
         "/kv_heads:" + number(s.num_kv_heads) + "/rows:" + number(s.num_rows) +
         "/keys:" + number(s.num_keys) + "/sinks:" + number(s.num_sinks) +
         (s.cold ? "/cold" : "/hot");
}

/// libvar's own: the op, its A/A twin, the op where all keys are of one class and nothing can be
/// redistributed, and past the dispatcher the kernel (CPU) and the same kernel without class logic.
void add_own(const Options& options, const std::shared_ptr<AttentionWork>& work,
             std::vector<Variant>& variants) {
  const auto with_rule = [work](const AttentionSet& set) { return attention(set.in, work->rule); };
  variants.push_back(work->variant("libvar", true, true, with_rule));
  variants.push_back(work->variant("libvar_again", true, true, with_rule));
  const auto one_class = [work](const AttentionSet& set) {
    AttentionInputs in = set.in;
    in.sink_scores = work->no_sinks;
    in.visual_mask = work->no_visual;
    return attention(in, work->none);
  };
  variants.push_back(work->variant("libvar_one_class", true, false, one_class));
  const bool on_gpu = options.device.is_cuda();
  if (!on_gpu) {
    variants.push_back(work->variant("libvar_kernel", true, true, [work](const AttentionSet& set) {
      const AttentionInputs& in = set.in;
      return cpu::attention_with_classes(in.query, in.key, in.value, in.sink_scores, in.visual_mask,
                                         in.scale, work->rule);
    }));
  }
  Variant plain = work->variant("libvar_plain", true, false, [on_gpu](const AttentionSet& set) {
    const AttentionInputs& in = set.in;
    return on_gpu ? cuda_attention_without_classes(in)
                  : cpu::attention_without_classes(in.query, in.key, in.value, in.scale);
  });
  plain.ours = !on_gpu;  // on CUDA not every dtype and head size has one: left out, not failed
  variants.push_back(std::move(plain));
}

void add_cpu_peers(const std::shared_ptr<AttentionWork>& work, std::vector<Variant>& variants) {
  const bool decode = work->shape.num_rows == 1;
  const bool grouped = work->shape.num_heads != work->shape.num_kv_heads;
  variants.push_back(work->variant(
      "sdpa", false, false, [](const AttentionSet& set) { return sdpa(set, Sdpa::kDefault); }));
  if (decode && grouped) {
    variants.push_back(work->variant("sdpa_packed", false, false, [](const AttentionSet& set) {
      return sdpa_packed(set, Sdpa::kDefault);
    }));
  }
}

void add_cuda_peers(const std::shared_ptr<AttentionWork>& work, std::vector<Variant>& variants) {
  const bool decode = work->shape.num_rows == 1;
  const bool grouped = work->shape.num_heads != work->shape.num_kv_heads;

  struct Backend {
    std::string name;
    Sdpa sdpa;
  };

  for (const Backend& backend :
       {Backend{"sdpa_flash", Sdpa::kFlash}, Backend{"sdpa_cudnn", Sdpa::kCudnn},
        Backend{"sdpa_efficient", Sdpa::kEfficient}}) {
    if (decode || backend.sdpa != Sdpa::kFlash) {
      variants.push_back(
          work->variant(backend.name, false, false,
                        [backend](const AttentionSet& set) { return sdpa(set, backend.sdpa); }));
    }
    if (decode && grouped) {
      variants.push_back(work->variant(
          backend.name + "_packed", false, false,
          [backend](const AttentionSet& set) { return sdpa_packed(set, backend.sdpa); }));
    }
  }
  if (!decode) variants.push_back(work->variant("sdpa_flash", false, false, flash_causal));
}

void add_eager(const std::shared_ptr<AttentionWork>& work, std::vector<Variant>& variants) {
  variants.push_back(work->variant("eager", false, false, eager));
  if (work->shape.num_heads != work->shape.num_kv_heads) {
    variants.push_back(work->variant("eager_packed", false, false, eager_packed));
  }
  variants.push_back(work->variant(
      "eager_redistributed", false, true,
      [work](const AttentionSet& set) { return eager_redistributed(set, work->rule); }));
  if (work->shape.num_rows == 1 && work->shape.num_sinks > 1) {
    variants.push_back(work->variant("subtract", false, true, [work](const AttentionSet& set) {
      return subtract(set, work->rule);
    }));
  }
}

void add_cpu_ratios(const AttentionCase& c, std::vector<Ratio>& ratios) {
  const bool decode = c.shape.num_rows == 1;
  const auto bar = [&](double value) { return c.bars ? std::optional(value) : std::nullopt; };
  ratios.push_back({"libvar_kernel", "libvar_plain", {}, decode ? bar(1.03) : std::nullopt, {}});
  ratios.push_back({"libvar", "libvar_plain", {}, {}, {}});
  ratios.push_back({"libvar", "libvar_one_class", {}, {}, {}});
  ratios.push_back({"sdpa", "libvar", {}, {}, decode ? bar(4.0) : bar(1.0)});
  ratios.push_back({"eager", "libvar", {}, {}, decode ? bar(1.8) : std::nullopt});
  for (const char* peer : {"sdpa_packed", "eager_packed", "eager_redistributed", "subtract"}) {
    ratios.push_back({peer, "libvar", {}, {}, {}});
  }
}

void add_cuda_ratios(const AttentionCase& c, std::vector<Ratio>& ratios) {
  const bool decode = c.shape.num_rows == 1;
  const auto bar = [&](double value) { return c.bars ? std::optional(value) : std::nullopt; };
  const double own = c.shape.num_keys < 4096 ? 1.05 : 1.02;
  ratios.push_back({"libvar", "libvar_plain", {}, decode ? bar(own) : std::nullopt, {}});
  ratios.push_back({"libvar", "libvar_one_class", {}, {}, {}});
  ratios.push_back({"libvar",
                    "best_sdpa",
                    {"sdpa_flash", "sdpa_cudnn", "sdpa_efficient", "sdpa_flash_packed",
                     "sdpa_cudnn_packed", "sdpa_efficient_packed"},
                    bar(decode ? 1.1 : 1.3),
                    {}});
  ratios.push_back({"eager_redistributed", "libvar", {}, {}, bar(decode ? 5.0 : 3.0)});
  for (const char* peer : {"eager", "eager_packed", "subtract"}) {
    ratios.push_back({peer, "libvar", {}, {}, {}});
  }
}

Workload prepare(const Options& options, const AttentionCase& c) {
  auto work = std::make_shared<AttentionWork>();
  work->shape = c.shape;
  work->none.head_rule = HeadRule::kNone;
  const double bytes = attention_bytes(c.shape);
  const std::size_t num_sets = !c.shape.cold ? 1
                               : options.tiny
                                   ? 2
                                   : cold_sets(options.device, static_cast<std::size_t>(bytes));
  for (std::size_t i = 0; i < num_sets; ++i) {
    work->sets.push_back(random_attention_set(c.shape, options.device, 1 + i));
  }
  const AttentionInputs& in = work->sets.front().in;
  work->no_sinks = at::zeros_like(in.sink_scores);
  work->no_visual = at::zeros_like(in.visual_mask);
  work->check = std::make_unique<AttentionCheck>(work->sets.front(), work->rule);

  Workload result;
  result.sets = num_sets;
  result.data = work;
  result.facts["bytes"] = bytes;
  result.facts["flops"] = attention_flops(c.shape);
  result.facts["selected_share"] = work->check->selected_share();
  // A check that redistribution itself could pass unseen would prove nothing.
  TORCH_CHECK(c.shape.num_sinks < 2 ||
                  work->check->effect() > 2.0 * kPeerTolerance * allowed_row_error(c.shape.dtype),
              "redistribution changes no row enough to be seen");
  add_own(options, work, result.variants);
  if (options.grid == "cuda") {
    if (options.device.is_cuda()) add_cuda_peers(work, result.variants);
    add_cuda_ratios(c, result.ratios);
  } else {
    add_cpu_peers(work, result.variants);
    add_cpu_ratios(c, result.ratios);
  }
  add_eager(work, result.variants);
  return result;
}

AttentionShape shape(std::int64_t heads, std::int64_t kv_heads, std::int64_t rows,
                     std::int64_t keys) {
  AttentionShape s;
  s.num_heads = heads;
  s.num_kv_heads = kv_heads;
  s.num_rows = rows;
  s.num_keys = keys;
  return s;
}

std::vector<AttentionCase> cpu_grid() {
  std::vector<AttentionCase> cases;
  for (const std::int64_t rows : {1, 64}) {
    for (const std::int64_t keys : {640, 4096}) {
      cases.push_back({shape(32, 32, rows, keys)});
      cases.push_back({shape(28, 4, rows, keys)});
    }
  }
  for (const at::ScalarType dtype : {at::kFloat, at::kHalf}) {  // information, no bars
    for (const std::int64_t rows : {1, 64}) {
      AttentionShape s = shape(32, 32, rows, 640);
      s.dtype = dtype;
      cases.push_back({s, 101, false});
    }
  }
  return cases;
}

std::vector<AttentionCase> cuda_grid() {
  const std::vector<AttentionShape> models = {shape(32, 32, 1, 640), shape(32, 32, 1, 2048),
                                              shape(32, 8, 1, 3400), shape(28, 4, 1, 4096),
                                              shape(28, 4, 1, 16384)};
  constexpr int kRounds = 51;
  std::vector<AttentionCase> cases;
  for (const bool cold : {true, false}) {
    for (AttentionShape s : models) {
      s.cold = cold;
      cases.push_back({s, kRounds, cold});
    }
  }
  for (const std::int64_t rows : {16, 64, 512}) {
    for (AttentionShape s : models) {
      if (rows == 512 && s.num_keys < 2048) continue;  // such a prompt has more text than image
      s.num_rows = rows;
      cases.push_back({s, kRounds, true});
    }
  }
  for (const std::int64_t sinks : {0, 1, 64}) {
    for (const std::size_t i : {std::size_t{0}, models.size() - 1}) {
      AttentionShape s = models[i];
      s.num_sinks = sinks;
      cases.push_back({s, kRounds, true});
    }
  }
  for (const at::ScalarType dtype : {at::kHalf, at::kFloat}) {
    for (const std::size_t i : {std::size_t{0}, models.size() - 1}) {
      for (const std::int64_t rows : {1, 64}) {
        AttentionShape s = models[i];
        s.dtype = dtype;
        s.num_rows = rows;
        cases.push_back({s, kRounds, dtype == at::kHalf});
      }
    }
  }
  return cases;
}

/// The same structure at sizes that take no time: groups, several tiles of keys, rows and sinks.
AttentionCase tiny(AttentionCase c) {
  const std::int64_t group = c.shape.num_heads / c.shape.num_kv_heads;
  c.shape.num_kv_heads = std::min<std::int64_t>(c.shape.num_kv_heads, 2);
  c.shape.num_heads = c.shape.num_kv_heads * group;
  c.shape.num_keys = std::min<std::int64_t>(c.shape.num_keys, 150);
  c.shape.num_rows = std::min<std::int64_t>(c.shape.num_rows, 20);
  c.shape.num_sinks = std::min<std::int64_t>(c.shape.num_sinks, 10);
  return c;
}

}  // namespace

void register_attention(const Options& options) {
  for (const AttentionCase& c : options.grid == "cuda" ? cuda_grid() : cpu_grid()) {
    const std::string name = name_of(options, c.shape);
    const AttentionCase sized = options.tiny ? tiny(c) : c;
    register_case(options, {name, c.rounds, [options, sized] { return prepare(options, sized); }});
  }
}

}  // namespace libvar::bench
