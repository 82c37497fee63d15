#pragma once

// `redistribute` in double precision, written from var.md. No torch.

#include <cstdint>
#include <optional>
#include <vector>

#include "reference/row_oracle.h"

namespace libvar::reference {

struct RedistributeProblem {
  int batch = 1;
  int num_heads = 1;
  int num_rows = 1;
  int num_keys = 1;
  std::vector<double> probs;       ///< [B, H, Q, K], the values that the op saw, in its dtype
  std::vector<float> sink_scores;  ///< [B, K]
  std::vector<std::uint8_t> visual_mask;              ///< [B, K]
  std::optional<std::vector<std::uint8_t>> row_mask;  ///< [B, Q]
  RedistributionRule rule;
};

struct RedistributeResult {
  std::vector<double> probs;           ///< [B, H, Q, K]
  std::vector<std::uint8_t> selected;  ///< [B, H, Q]
  std::vector<double> margin;          ///< [B, H, Q], see RowDecision
};

/// @param selection  decisions to use in place of the oracle's own: tests compare given the same
/// selection
inline RedistributeResult redistribute(const RedistributeProblem& in,
                                       const std::vector<std::uint8_t>* selection = nullptr) {
  RedistributeResult result;
  result.probs = in.probs;
  const Rule rule(in.rule);
  for (int b = 0; b < in.batch; ++b) {
    std::vector<TokenClass> classes(in.num_keys);
    RowFacts facts;
    bool sees_visual_sink = false;
    for (int j = 0; j < in.num_keys; ++j) {
      const std::size_t key = static_cast<std::size_t>(b) * in.num_keys + j;
      classes[j] = class_of(in.sink_scores[key], in.visual_mask[key] != 0, rule.tau);
      facts.num_visual_keys += in.visual_mask[key] ? 1.0 : 0.0;
      sees_visual_sink = sees_visual_sink || classes[j] == TokenClass::kVisualSink;
    }
    for (int h = 0; h < in.num_heads; ++h) {
      for (int i = 0; i < in.num_rows; ++i) {
        const std::size_t index =
            (static_cast<std::size_t>(b) * in.num_heads + h) * in.num_rows + i;
        double* row = result.probs.data() + index * in.num_keys;
        facts.mass = {};
        for (int j = 0; j < in.num_keys; ++j) facts.mass[static_cast<int>(classes[j])] += row[j];
        facts.eligible =
            sees_visual_sink &&
            (!in.row_mask || (*in.row_mask)[static_cast<std::size_t>(b) * in.num_rows + i] != 0);
        const RowDecision decision = decide_row(facts, rule);
        const bool selected = selection ? (*selection)[index] != 0 : decision.selected;
        const auto weights = weights_of(facts, rule, selected);
        for (int j = 0; j < in.num_keys; ++j) row[j] *= weights[static_cast<int>(classes[j])];
        result.selected.push_back(selected);
        result.margin.push_back(decision.margin);
      }
    }
  }
  return result;
}

}  // namespace libvar::reference
