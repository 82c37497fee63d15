#include "generate/generation.h"

#include <ATen/ops/stack.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <string>
#include <utility>

#include "libvar/error.h"

namespace libvar {

VarParams resolve_var(const Request& request, const LoadedModel& model) {
  VarParams params = request.var;
  params.validate();
  if (!params.first_layer) params.first_layer = model.var_defaults().first_layer;
  const std::int64_t num_layers = model.config.decoder.num_layers;
  if (params.enabled && *params.first_layer >= num_layers) {
    throw ConfigError(c10::str("VarParams: first_layer must be below the model's ", num_layers,
                               " layers, got ", *params.first_layer));
  }
  if (params.enabled && model.manifest.sink_dimensions.dims.empty()) {
    throw ConfigError(
        "VarParams: enabled, but no sink dimensions are known for this model; find them "
        "(discover_sink_dimensions, `var sinks discover`) or set enabled to false");
  }
  return params;
}

std::int64_t room_for_answer(const LoadedModel& model, const Sequence& prompt,
                             const Request& request, std::int64_t earlier) {
  const std::int64_t context = model.config.decoder.max_positions;
  const auto rows = static_cast<std::int64_t>(prompt.ids.size());
  const std::int64_t room = context - earlier - rows;
  if (room < 1) {
    const std::string behind =
        earlier > 0 ? c10::str(" behind ", earlier, " of earlier turns") : std::string();
    throw InputError(c10::str("prompt: ", rows, " tokens", behind,
                              " leave no room for an answer, the context is ", context,
                              " tokens long"));
  }
  return std::min(request.generation.max_new_tokens, room);
}

Generation::Generation(const LoadedModel& model, const Request& request,
                       std::int64_t max_new_tokens, TextCallback on_text)
    : model_(&model),
      keeps_logits_(request.return_logits),
      max_new_tokens_(max_new_tokens),
      on_text_(std::move(on_text)),
      params_(request.generation),
      decoder_(*model.tokenizer) {}

bool Generation::choose(const at::Tensor& logits) {
  return take(choose_token(logits, params_, draws()), logits);
}

bool Generation::take(std::int64_t token, const at::Tensor& logits) {
  if (token < 0) throw Error("sampler: the logits are not finite");
  token_ = token;
  if (keeps_logits_) logits_.push_back(logits.to(at::kCPU, at::kFloat).clone());
  if (model_->is_stop_token(*token_)) {
    finish_reason_ = FinishReason::kStop;
    return false;
  }
  tokens_.push_back(*token_);
  if (on_text_ && !give(decoder_.push(*token_))) {
    finish_reason_ = FinishReason::kCancelled;
    return false;
  }
  if (static_cast<std::int64_t>(tokens_.size()) == max_new_tokens_) {
    finish_reason_ = FinishReason::kLength;
    return false;
  }
  ++steps_;
  return true;
}

void Generation::finish(Answer& answer) {
  answer.timing.decode_ms = time_.ms();
  answer.timing.decode_tokens = steps_;
  if (steps_ > 0)
    answer.timing.tokens_per_second =
        1000.0 * static_cast<double>(steps_) / answer.timing.decode_ms;
  const std::string rest = decoder_.finish();
  if (finish_reason_ != FinishReason::kCancelled) give(rest);
  answer.finish_reason = finish_reason_;
  answer.text = model_->tokenizer->decode(tokens_);
  answer.tokens = std::move(tokens_);
  if (keeps_logits_) answer.logits = at::stack(logits_);
}

}  // namespace libvar
