// redistribute and redistribute_ on the CPU: checks, the class of every key (once per call and
// sequence, not once per row), threads. The rows are in redistribute_kernel.cpp.

#include <ATen/MemoryOverlap.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "checks.h"
#include "cpu/element_type.h"
#include "cpu/redistribute_kernel.h"

namespace libvar::cpu {
namespace {

// The keys of every sequence. Owns what GroupedKeys points to.
class Sequences {
 public:
  Sequences(const at::Tensor& sink_scores, const at::Tensor& visual_mask, float tau,
            ElementType type) {
    const at::Tensor scores = sink_scores.contiguous(), visual = visual_mask.contiguous();
    const std::int64_t batch = scores.size(0), num_keys = scores.size(1);
    const std::int64_t num_groups = (num_keys + kGroup - 1) / kGroup;
    of_group_.resize(static_cast<std::size_t>(batch * num_groups));
    of_lane_.resize(static_cast<std::size_t>(batch * num_groups * kGroup));
    const auto* visual_bytes = static_cast<const std::uint8_t*>(visual.const_data_ptr());
    const auto group_keys = LIBVAR_CPU_BUILDS(group_keys).chosen();
    for (std::int64_t b = 0; b < batch; ++b) {
      keys_.push_back(group_keys(
          scores.const_data_ptr<float>() + b * num_keys, visual_bytes + b * num_keys, num_keys, tau,
          type, of_group_.data() + b * num_groups, of_lane_.data() + b * num_groups * kGroup));
    }
  }

  const GroupedKeys* keys() const { return keys_.data(); }

 private:
  std::vector<std::uint8_t> of_group_;
  std::vector<std::uint8_t> of_lane_;
  std::vector<GroupedKeys> keys_;
};

// `out` is `probs` for the form in place; then only selected rows are written.
void run(const at::Tensor& probs, const at::Tensor& out, const at::Tensor& sink_scores,
         const at::Tensor& visual_mask, const std::optional<at::Tensor>& row_mask,
         const RedistributionRule& rule) {
  if (probs.numel() == 0) return;
  RedistributeCall call = {};
  call.type = element_type(probs.scalar_type());
  const Sequences sequences(sink_scores, visual_mask, rule.tau, call.type);
  call.sequences = sequences.keys();
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
