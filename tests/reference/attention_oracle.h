#pragma once

// `attention` in double precision, one full row of probabilities at a time, written from var.md. No
// torch.

#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "reference/row_oracle.h"

namespace libvar::reference {

struct AttentionProblem {
  int batch = 1;
  int num_heads = 1;
  int num_kv_heads = 1;
  int num_rows = 1;  ///< query rows
  int num_keys = 1;  ///< capacity of key and value
  int head_dim = 1;
  std::vector<double> query;       ///< [B, H, Q, Dh], the values that the op saw, in its dtype
  std::vector<double> key;         ///< [B, H_kv, K, Dh]
  std::vector<double> value;       ///< [B, H_kv, K, Dh]
  std::vector<float> sink_scores;  ///< [B, K]
  std::vector<std::uint8_t> visual_mask;              ///< [B, K]
  std::optional<std::vector<std::uint8_t>> row_mask;  ///< [B, Q]
  std::optional<std::vector<int>> kv_lengths;         ///< [B], in [0, K]
  std::optional<std::vector<float>> params;           ///< [B, 4]
  double scale = 1.0;
  RedistributionRule rule;
};

struct AttentionResult {
  std::vector<double> out;             ///< [B, H, Q, Dh]
  std::vector<std::uint8_t> selected;  ///< [B, H, Q]
  std::vector<double> class_mass;      ///< [B, H, Q, 4]
  std::vector<double> margin;          ///< [B, H, Q], see RowDecision
};

/// @param selection  decisions to use in place of the oracle's own: tests compare given the same
/// selection
inline AttentionResult attention(const AttentionProblem& in,
                                 const std::vector<std::uint8_t>* selection = nullptr) {
  AttentionResult result;
  const std::size_t num_results = static_cast<std::size_t>(in.batch) * in.num_heads * in.num_rows;
  result.out.assign(num_results * in.head_dim, 0.0);
  result.selected.assign(num_results, 0);
  result.class_mass.assign(num_results * kNumTokenClasses, 0.0);
  result.margin.assign(num_results, std::numeric_limits<double>::infinity());
  for (int b = 0; b < in.batch; ++b) {
    Rule rule(in.rule);
    if (in.params) {
      const float* params = in.params->data() + 4 * b;
      rule.tau = params[0];
      rule.rho = params[1];
      rule.p = params[2];
      rule.min_visual_mass = params[3];
    }
    const int length = in.kv_lengths ? (*in.kv_lengths)[b] : in.num_keys;
    const float* phi = in.sink_scores.data() + static_cast<std::size_t>(b) * in.num_keys;
    const std::uint8_t* visual = in.visual_mask.data() + static_cast<std::size_t>(b) * in.num_keys;
    for (int h = 0; h < in.num_heads; ++h) {
      const int kv_head = h / (in.num_heads / in.num_kv_heads);
      const std::size_t kv_offset =
          (static_cast<std::size_t>(b) * in.num_kv_heads + kv_head) * in.num_keys * in.head_dim;
      for (int i = 0; i < in.num_rows; ++i) {
        const std::size_t index =
            (static_cast<std::size_t>(b) * in.num_heads + h) * in.num_rows + i;
        const int position = length - in.num_rows + i;
        if (position < 0) continue;
        const int num_seen = position + 1;
        std::vector<double> probs(num_seen);
        double maximum = -std::numeric_limits<double>::infinity();
        for (int j = 0; j < num_seen; ++j) {
          double dot = 0.0;
          for (int d = 0; d < in.head_dim; ++d) {
            dot += in.query[index * in.head_dim + d] *
                   in.key[kv_offset + static_cast<std::size_t>(j) * in.head_dim + d];
          }
          probs[j] = dot * in.scale;
          maximum = std::fmax(maximum, probs[j]);
        }
        double sum = 0.0;
        for (double& value : probs) sum += (value = std::exp(value - maximum));
        RowFacts facts;
        bool sees_visual_sink = false;
        for (int j = 0; j < num_seen; ++j) {
          probs[j] /= sum;
          const TokenClass c = class_of(phi[j], visual[j] != 0, rule.tau);
          facts.mass[static_cast<int>(c)] += probs[j];
          facts.num_visual_keys += visual[j] ? 1.0 : 0.0;
          sees_visual_sink = sees_visual_sink || c == TokenClass::kVisualSink;
        }
        const bool row_may =
            in.row_mask ? (*in.row_mask)[static_cast<std::size_t>(b) * in.num_rows + i] != 0
                        : visual[position] == 0;
        facts.eligible = row_may && sees_visual_sink;
        const RowDecision decision = decide_row(facts, rule);
        const bool selected = selection ? (*selection)[index] != 0 : decision.selected;
        const auto weights = weights_of(facts, rule, selected);
        for (int j = 0; j < num_seen; ++j) {
          const double weighted =
              probs[j] * weights[static_cast<int>(class_of(phi[j], visual[j] != 0, rule.tau))];
          for (int d = 0; d < in.head_dim; ++d) {
            result.out[index * in.head_dim + d] +=
                weighted * in.value[kv_offset + static_cast<std::size_t>(j) * in.head_dim + d];
          }
        }
        result.selected[index] = selected;
        result.margin[index] = decision.margin;
        for (int c = 0; c < kNumTokenClasses; ++c)
          result.class_mass[index * kNumTokenClasses + c] = facts.mass[c];
      }
    }
  }
  return result;
}

}  // namespace libvar::reference
