#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <limits>
#include <random>

#include "generate/conversation.h"
#include "generate/prepare_prompt.h"
#include "libvar/error.h"
#include "libvar/knockout.h"
#include "libvar/session.h"
#include "loaded_model.h"

namespace libvar {
namespace {

/// The rule of a knockout as settings of VAR.
VarParams knockout_params(VarParams var, const Knockout& knockout) {
  using enum TokenClass;
  var.enabled = knockout.tokens != KnockoutTokens::kNone;
  var.sources = class_set(kVisualSink);
  var.targets =
      static_cast<ClassSet>(class_set(kVisualNonSink) | class_set(kTextSink, kTextNonSink));
  var.p = 1;
  var.min_visual_mass = 0;
  var.head_rule = HeadRule::kAll;
  return var;
}

/// Makes the tokens that are to be knocked out the only visual sinks of a layer.
class KnockoutClasses {
 public:
  KnockoutClasses(const Knockout& knockout, float tau, std::int64_t num_layers,
                  const std::vector<std::pair<std::int64_t, std::int64_t>>& visual_spans)
      : knockout_(knockout), tau_(tau), visual_spans_(visual_spans) {
    counts.assign(static_cast<std::size_t>(num_layers), 0);
    for (const std::int64_t position : knockout.positions) {
      if (!is_visual(position))
        throw ConfigError(c10::str("Knockout: position ", position, " is no visual token"));
    }
  }

  /// Sink scores that put each token into the class that it is to have: +inf or 0.
  at::Tensor operator()(std::int64_t layer, std::int64_t past, const at::Tensor& phi) {
    at::Tensor out = at::zeros_like(phi);
    if (past > 0) return out;  // generated tokens
    const std::vector<std::int64_t> gone = positions(layer, phi);
    counts[static_cast<std::size_t>(layer)] = static_cast<std::int64_t>(gone.size());
    if (gone.empty()) return out;
    out.index_fill_(1, at::tensor(gone, at::kLong).to(phi.device()),
                    std::numeric_limits<float>::infinity());
    return out;
  }

  std::vector<std::int64_t> counts;  ///< per layer

 private:
  bool is_visual(std::int64_t position) const {
    return std::any_of(visual_spans_.begin(), visual_spans_.end(), [&](const auto& span) {
      return position >= span.first && position < span.second;
    });
  }

  std::vector<std::int64_t> positions(std::int64_t layer, const at::Tensor& phi) const {
    if (knockout_.tokens == KnockoutTokens::kNone) return {};
    if (knockout_.tokens == KnockoutTokens::kPositions) return knockout_.positions;
    const at::Tensor scores = phi[0].to(at::kCPU);
    const float* score = scores.const_data_ptr<float>();
    std::vector<std::int64_t> sinks, others;
    for (const auto& [begin, end] : visual_spans_) {
      for (std::int64_t i = begin; i < end; ++i) (score[i] >= tau_ ? sinks : others).push_back(i);
    }
    if (knockout_.tokens == KnockoutTokens::kSinks) return sinks;
    // A draw of its own for each layer, the same on every machine.
    std::mt19937_64 engine(knockout_.seed * 1000003 + static_cast<std::uint64_t>(layer));
    const std::size_t count = std::min(sinks.size(), others.size());
    for (std::size_t i = 0; i < count; ++i)
      std::swap(others[i], others[i + static_cast<std::size_t>(engine() % (others.size() - i))]);
    others.resize(count);
    std::sort(others.begin(), others.end());
    return others;
  }

  const Knockout& knockout_;
  float tau_;
  std::vector<std::pair<std::int64_t, std::int64_t>> visual_spans_;
};

}  // namespace

std::vector<std::int64_t> answer_tokens(const Model& model, const std::string& text) {
  return model.loaded().tokenizer->encode(text, /*add_bos=*/false);
}

KnockoutAnswer knock_out(const std::shared_ptr<const Model>& model, const Request& request,
                         const Knockout& knockout, const std::vector<std::int64_t>& expected) {
  const c10::InferenceMode inference;
  const LoadedModel& loaded = model->loaded();
  Request changed = request;
  changed.var = knockout_params(request.var, knockout);
  if (!changed.var.first_layer) changed.var.first_layer = loaded.var_defaults().first_layer;
  const PreparedPrompt prepared = prepare_prompt(loaded, request, /*first_turn=*/true);
  KnockoutClasses classes(knockout, request.var.tau, loaded.config.decoder.num_layers,
                          prepared.sequence.visual_spans);
  PassHooks hooks;
  hooks.sink_scores = [&](std::int64_t layer, std::int64_t past, const at::Tensor& phi) {
    return classes(layer, past, phi);
  };
  hooks.drops_source_mass = knockout.keep_mass;
  Session session(model);
  session.set_hooks(hooks);
  KnockoutAnswer out;
  out.answer = session.ask(changed);
  out.knocked_out = classes.counts;
  if (expected.empty()) return out;
  Conversation conversation(loaded.decoder, /*prefill_chunk=*/0);
  conversation.set_hooks(hooks);
  at::Tensor logits = conversation.prefill(prepared.sequence, loaded.encode_images(prepared.images),
                                           changed.var, static_cast<std::int64_t>(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    out.expected_log_probs.push_back(
        at::log_softmax(logits.to(at::kDouble), -1)[expected[i]].item<double>());
    if (i + 1 < expected.size()) logits = conversation.step(expected[i], changed.var);
  }
  return out;
}

}  // namespace libvar
