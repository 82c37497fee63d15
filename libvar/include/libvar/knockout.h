#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar {

/// Which visual tokens text rows are kept from seeing.
enum class KnockoutTokens {
  kNone,
  kSinks,      ///< the visual sinks of each layer
  kRandom,     ///< as many other visual tokens of each layer, drawn anew for each layer
  kPositions,  ///< Knockout::positions, in every layer
};

/// Attention from text to some visual tokens removed, in the layers that VAR may act on.
struct Knockout {
  KnockoutTokens tokens = KnockoutTokens::kSinks;
  std::vector<std::int64_t> positions;  ///< kPositions: visual tokens of the prompt
  std::uint64_t seed = 0;               ///< kRandom
  /// false: removed before the softmax, the row sums to 1 again; true: set to 0 behind it, what is
  /// left is not normalised.
  bool keep_mass = false;
};

/// An answer under a knockout.
struct KnockoutAnswer {
  Answer answer;
  /// Log-probabilities of each token of `expected` behind the prompt, teacher-forced, under the
  /// same knockout; empty without it.
  std::vector<double> expected_log_probs;
  std::vector<std::int64_t> knocked_out;  ///< per layer: visual tokens removed
};

/// Answers a question without the attention of text rows to some visual tokens.
///
/// Source: arXiv:2503.03321, Section 3 (Figure 3b). It is the redistribution of
/// redistribution_rule.h with the removed tokens as the only sources, p = 1, all other keys as
/// targets and every head: what is left of a row is its softmax over the other keys.
/// @param request   var.tau, first_layer and include_last_layer are used; VAR itself is off
/// @param expected  ids whose log-probability is wanted
/// @throws          as Session::ask; ConfigError for positions that are no visual tokens
KnockoutAnswer knock_out(const std::shared_ptr<const Model>& model, const Request& request,
                         const Knockout& knockout, const std::vector<std::int64_t>& expected = {});

/// The ids of an answer's text as they follow a prompt: what knock_out takes as `expected`.
std::vector<std::int64_t> answer_tokens(const Model& model, const std::string& text);

}  // namespace libvar
