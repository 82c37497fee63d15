// redistribute and redistribute_ on the CPU: checks, the class of every key (once per call and
// sequence, not once per row), threads. The rows are in redistribute_kernel.cpp.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "checks.h"
#include "classes.h"
#include "cpu/element_type.h"
#include "cpu/redistribute_kernel.h"

namespace libvar::cpu {
namespace {

// Owns what GroupedKeys points to.
struct SequenceKeys {
  std::vector<std::uint8_t> of_group;
  std::vector<std::uint8_t> of_lane;
  float num_visual = 0.0f;
  bool has_visual_sink = false;
};

SequenceKeys classify(const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                      std::int64_t sequence, float tau, ElementType type) {
  const std::int64_t num_keys = sink_scores.size(1);
  const float* scores = sink_scores.const_data_ptr<float>() + sequence * sink_scores.stride(0);
  const bool* visual = visual_mask.const_data_ptr<bool>() + sequence * visual_mask.stride(0);
  const std::int64_t num_groups = (num_keys + kGroup - 1) / kGroup;
  SequenceKeys keys;
  keys.of_group.resize(static_cast<std::size_t>(num_groups));
  keys.of_lane.resize(static_cast<std::size_t>(num_groups * kGroup));
  std::int64_t num_visual = 0;
  for (std::int64_t g = 0; g < num_groups; ++g) {
    const int count = static_cast<int>(std::min<std::int64_t>(kGroup, num_keys - g * kGroup));
    std::uint8_t* of_lane = keys.of_lane.data() + g * kGroup;
    unsigned seen = 0;  // a ClassSet
    for (int i = 0; i < count; ++i) {
      const std::int64_t j = g * kGroup + i;
      const bool is_visual = visual[j * visual_mask.stride(1)];
      const int key_class = token_class(scores[j * sink_scores.stride(1)], is_visual, tau);
      of_lane[group_lane(type, i)] = static_cast<std::uint8_t>(key_class);
      seen |= 1u << key_class;
      num_visual += is_visual ? 1 : 0;
    }
    const bool mixed = (seen & (seen - 1)) != 0;
    keys.of_group[static_cast<std::size_t>(g)] =
        mixed ? kMixedClasses : static_cast<std::uint8_t>(std::countr_zero(seen));
    keys.has_visual_sink |= (seen & class_set(TokenClass::kVisualSink)) != 0;
  }
  keys.num_visual = static_cast<float>(num_visual);
  return keys;
}

// `out` is `probs` for the form in place; then only selected rows are written.
void run(const at::Tensor& probs, const at::Tensor& out, const at::Tensor& sink_scores,
         const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask,
         const RedistributionRule& rule) {
  if (probs.numel() == 0) return;
  RedistributeCall call = {};
  call.type = element_type(probs.scalar_type());
  std::vector<SequenceKeys> owners;
  std::vector<GroupedKeys> sequences;
  for (std::int64_t b = 0; b < probs.size(0); ++b) {
    owners.push_back(classify(sink_scores, visual_mask, b, rule.tau, call.type));
    const SequenceKeys& keys = owners.back();
    sequences.push_back(
        {keys.of_group.data(), keys.of_lane.data(), keys.num_visual, keys.has_visual_sink});
  }
  call.probs = probs.const_data_ptr();
  call.out = out.mutable_data_ptr();
  if (row_mask.has_value()) {
    call.row_mask = row_mask->const_data_ptr<bool>();
    for (int d = 0; d < 2; ++d) call.row_mask_stride[d] = row_mask->stride(d);
  }
  for (int d = 0; d < 3; ++d) {
    call.probs_stride[d] = probs.stride(d);
    call.out_stride[d] = out.stride(d);
  }
  call.num_heads = probs.size(1);
  call.num_rows = probs.size(2);
  call.num_keys = probs.size(3);
  call.sequences = sequences.data();
  call.rule = rule;
  const auto rows = LIBVAR_CPU_BUILDS(redistribute_rows).chosen();
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / call.num_keys);
  at::parallel_for(0, probs.size(0) * call.num_heads * call.num_rows, grain,
                   [&](std::int64_t begin, std::int64_t end) { rows(call, begin, end); });
}

// Both forms: checks, then the result in probs itself or in a fresh tensor.
at::Tensor checked_run(const char* op, bool in_place, const at::Tensor& probs,
                       const at::Tensor& sink_scores, const at::Tensor& visual_mask,
                       const std::optional<at::Tensor>& row_mask,
                       const checks::RuleArguments& arguments) {
  const RedistributionRule rule = checks::check_rule(op, arguments);
  checks::check_redistribute(op, probs, sink_scores, visual_mask, row_mask);
  if (in_place) at::assert_no_internal_overlap(probs);
  const at::Tensor out = in_place ? probs : at::empty(probs.sizes(), probs.options());
  run(probs, out, sink_scores, visual_mask, row_mask, rule);
  return out;
}

at::Tensor redistribute_cpu(const at::Tensor& probs, const at::Tensor& sink_scores,
                            const at::Tensor& visual_mask,
                            const std::optional<at::Tensor>& row_mask, double tau, double rho,
                            double p, double min_visual_mass, double ratio_epsilon,
                            std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  return checked_run("redistribute", false, probs, sink_scores, visual_mask, row_mask,
                     {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
}

void redistribute_in_place_cpu(at::Tensor& probs, const at::Tensor& sink_scores,
                               const at::Tensor& visual_mask,
                               const std::optional<at::Tensor>& row_mask, double tau, double rho,
                               double p, double min_visual_mass, double ratio_epsilon,
                               std::int64_t sources, std::int64_t targets, std::int64_t head_rule) {
  checked_run("redistribute_", true, probs, sink_scores, visual_mask, row_mask,
              {tau, rho, p, min_visual_mass, ratio_epsilon, sources, targets, head_rule});
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("_redistribute", &libvar::cpu::redistribute_cpu);
  m.impl("_redistribute_", &libvar::cpu::redistribute_in_place_cpu);
}
