#include "kernels/attention_inputs.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "reference/attention_oracle.h"

namespace libvar::bench {
namespace {

constexpr std::int64_t kTextBefore = 35;  // the system prompt and role of LLaVA-1.5
constexpr std::int64_t kImageTokens = 576;
// Added to a sink's score in the last head, at 8 sinks in 640 keys.
constexpr double kLargestSinkScore = 4.5;
constexpr std::int64_t kRowsChecked = 128;
constexpr std::int64_t kHeadsChecked = 32;

std::vector<double> doubles(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kCPU, at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

/// Positions of the sinks: the first token, then keys spread evenly over the visual span.
std::vector<std::int64_t> sink_positions(std::int64_t num_sinks, std::int64_t begin,
                                         std::int64_t end) {
  std::vector<std::int64_t> result;
  if (num_sinks > 0) result.push_back(0);
  for (std::int64_t i = 1; i < num_sinks; ++i) {
    result.push_back(begin + (end - begin) * i / num_sinks);
  }
  result.erase(std::unique(result.begin(), result.end()), result.end());
  return result;
}

/// More keys per sink need a higher score for the same share of attention.
double largest_sink_score(const AttentionShape& s) {
  const auto sinks = static_cast<double>(std::max<std::int64_t>(s.num_sinks, 1));
  const double more_keys = std::log(static_cast<double>(s.num_keys) / 640.0 * 8.0 / sinks);
  return std::max(kLargestSinkScore + more_keys, 2.5);
}

at::Tensor positions(const std::vector<std::int64_t>& values, const at::Device& device) {
  return at::tensor(values, at::kLong).to(device);
}

double relative_error(const std::vector<double>& actual, const std::vector<double>& expected) {
  double difference = 0.0;
  double size = 0.0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return std::sqrt(difference / size);
}

}  // namespace

AttentionSet random_attention_set(const AttentionShape& s, const at::Device& device,
                                  std::uint64_t seed) {
  at::manual_seed(seed);
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  AttentionSet set;
  const std::int64_t before = std::min(kTextBefore, s.num_keys / 16);
  set.visual_begin = before;
  set.visual_end = before + std::min(std::max(kImageTokens, s.num_keys * 7 / 8),
                                     s.num_keys - s.num_rows - before);
  const std::vector<std::int64_t> sinks =
      sink_positions(s.num_sinks, set.visual_begin, set.visual_end);

  // score = scale * q . k; along `direction` a sink key has sqrt(Dh), head h the boost it gives.
  const double root = std::sqrt(static_cast<double>(s.head_dim));
  const at::Tensor direction = at::randn({s.num_kv_heads, 1, s.head_dim}, floats);
  const at::Tensor unit = direction / direction.norm(2, -1, true);
  at::Tensor key = at::randn({s.num_kv_heads, s.num_keys, s.head_dim}, floats);
  for (const std::int64_t j : sinks) key.narrow(1, j, 1).add_(unit, root);
  const at::Tensor boost = (at::arange(s.num_heads, floats) + 0.5) *
                           (largest_sink_score(s) / static_cast<double>(s.num_heads));
  const at::Tensor head_unit = unit.repeat_interleave(s.num_heads / s.num_kv_heads, 0);
  at::Tensor query = at::randn({s.num_heads, s.num_rows, s.head_dim}, floats);
  query =
      query - (query * head_unit).sum(-1, true) * head_unit + boost.view({-1, 1, 1}) * head_unit;

  set.in.query = query.to(s.dtype).unsqueeze(0);
  set.in.key = key.to(s.dtype).unsqueeze(0);
  set.in.value = at::randn({1, s.num_kv_heads, s.num_keys, s.head_dim}, floats).to(s.dtype);
  set.in.scale = 1.0 / root;
  at::Tensor phi = at::rand({1, s.num_keys}, floats) * 15.0;
  set.sinks = positions(sinks, device);
  set.visual_sinks = positions({sinks.begin() + (sinks.empty() ? 0 : 1), sinks.end()}, device);
  if (!sinks.empty()) phi.index_fill_(1, set.sinks, 30.0);
  set.in.sink_scores = phi;
  set.in.visual_mask = at::zeros({1, s.num_keys}, floats.dtype(at::kBool));
  set.in.visual_mask.narrow(1, set.visual_begin, set.visual_end - set.visual_begin).fill_(true);
  if (s.num_rows > 1) {
    const at::Tensor seen =
        at::ones({s.num_rows, s.num_keys}, floats.dtype(at::kBool)).tril(s.num_keys - s.num_rows);
    set.causal_bias = at::zeros({s.num_rows, s.num_keys}, floats)
                          .masked_fill(seen.logical_not(), -std::numeric_limits<double>::infinity())
                          .to(s.dtype);
  }
  return set;
}

double attention_bytes(const AttentionShape& s) {
  const auto element = static_cast<double>(at::elementSize(s.dtype));
  const double cache =
      2.0 * element * static_cast<double>(s.num_kv_heads * s.num_keys * s.head_dim);
  const double rows = 2.0 * element * static_cast<double>(s.num_heads * s.num_rows * s.head_dim);
  return cache + rows + 5.0 * static_cast<double>(s.num_keys);
}

double attention_flops(const AttentionShape& s) {
  const double seen = static_cast<double>(s.num_keys) - 0.5 * static_cast<double>(s.num_rows - 1);
  return 4.0 * seen * static_cast<double>(s.num_heads * s.num_rows * s.head_dim);
}

AttentionCheck::AttentionCheck(const AttentionSet& set, const RedistributionRule& rule) {
  const std::int64_t heads = set.in.query.size(1);
  const std::int64_t num_rows = set.in.query.size(2);
  const std::int64_t keys = set.in.key.size(2);
  const std::int64_t group = heads / set.in.key.size(1);
  std::mt19937 random(7);
  const std::int64_t heads_checked = std::min(heads, kHeadsChecked);
  const std::int64_t rows_each = std::min(num_rows, kRowsChecked / heads_checked);
  RedistributionRule off = rule;
  off.head_rule = HeadRule::kNone;

  reference::AttentionProblem problem;
  problem.head_dim = static_cast<int>(set.in.query.size(3));
  problem.num_keys = static_cast<int>(keys);
  problem.scale = set.in.scale;
  const auto one_byte = doubles(set.in.visual_mask);
  problem.visual_mask.assign(one_byte.begin(), one_byte.end());
  const auto phi = doubles(set.in.sink_scores);
  problem.sink_scores.assign(phi.begin(), phi.end());
  for (std::int64_t h = 0; h < heads_checked; ++h) {
    if (h % group == 0) {
      problem.key = doubles(set.in.key[0][h / group]);
      problem.value = doubles(set.in.value[0][h / group]);
    }
    for (std::int64_t i = 0; i < rows_each; ++i) {
      const std::int64_t row =
          num_rows <= rows_each
              ? i
              : static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(num_rows));
      problem.query = doubles(set.in.query[0][h][row]);
      problem.kv_lengths = {static_cast<int>(keys - num_rows + row + 1)};
      problem.rule = rule;
      const reference::AttentionResult moved = reference::attention(problem);
      problem.rule = off;
      const reference::AttentionResult plain = reference::attention(problem);
      rows_.push_back({h, row, plain.out, moved.out, moved.selected[0] != 0, moved.margin[0]});
    }
  }
}

double AttentionCheck::error_share(const at::Tensor& out, bool redistributed, double margin,
                                   double allowed) const {
  if (!at::isfinite(out).all().item<bool>()) return std::numeric_limits<double>::infinity();
  const at::Tensor host = out.to(at::kCPU, at::kDouble).contiguous();
  double worst = 0.0;
  for (const Row& row : rows_) {
    if (redistributed && row.margin < margin) continue;
    const double error =
        relative_error(doubles(host[0][row.head][row.row]), redistributed ? row.moved : row.plain);
    if (!(error <= worst)) worst = error;
  }
  return worst / allowed;
}

double AttentionCheck::selected_share() const {
  const auto selected =
      std::count_if(rows_.begin(), rows_.end(), [](const Row& row) { return row.selected; });
  return static_cast<double>(selected) / static_cast<double>(rows_.size());
}

double AttentionCheck::effect() const {
  double largest = 0.0;
  for (const Row& row : rows_) largest = std::max(largest, relative_error(row.plain, row.moved));
  return largest;
}

double allowed_row_error(at::ScalarType dtype) {
  return dtype == at::kFloat ? 2e-5 : dtype == at::kHalf ? 1e-3 : 5e-3;
}

}  // namespace libvar::bench
