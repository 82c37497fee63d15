#include "libvar/session.h"

#include <ATen/ops/stack.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "generate/conversation.h"
#include "generate/prepare_prompt.h"
#include "generate/sampler.h"
#include "libvar/error.h"
#include "loaded_model.h"
#include "resource_errors.h"

namespace libvar {
namespace {

class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// The settings as the decoder reads them.
VarParams resolve(const Request& request, const LoadedModel& model) {
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

}  // namespace

std::string_view to_string(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

/// The one way from a request to an answer.
class Session::State {
 public:
  State(std::shared_ptr<const Model> model, const SessionOptions& options)
      : model_(std::move(model)),
        loaded_(model_->loaded()),
        conversation_(loaded_.decoder, options.prefill_chunk) {}

  void reset() {
    const c10::InferenceMode inference;
    conversation_.clear();
    pending_.reset();
  }

  std::int64_t length() const { return conversation_.length(); }

  void set_hooks(const PassHooks& hooks) { conversation_.set_hooks(hooks); }

  Answer answer(const Request& request, const TextCallback& on_text) {
    const c10::InferenceMode inference;
    return with_resource_errors("session", [&] {
      try {
        return answer_or_throw(request, on_text);
      } catch (...) {
        if (caches_changed_) reset();  // half a turn is no conversation
        throw;
      }
    });
  }

 private:
  Answer answer_or_throw(const Request& request, const TextCallback& on_text) {
    caches_changed_ = false;
    validate(request.generation);
    const VarParams var = resolve(request, loaded_);
    const Stopwatch vision_time;
    const PreparedPrompt prepared =
        prepare_prompt(loaded_, request, /*first_turn=*/conversation_.length() == 0);
    const Sequence& prompt = prepared.sequence;
    const std::int64_t max_new_tokens = room_for_answer(prompt, request.generation.max_new_tokens);

    Answer answer;
    answer.prompt_tokens = prompt.ids;
    const std::vector<at::Tensor> features = loaded_.encode_images(prepared.images);
    synchronize(loaded_.target.device);
    answer.timing.vision_ms = vision_time.ms();

    caches_changed_ = true;
    const Stopwatch prefill_time;
    if (has_unfed_token()) conversation_.step(*pending_, var);
    at::Tensor logits = conversation_.prefill(prompt, features, var, max_new_tokens);
    synchronize(loaded_.target.device);
    answer.timing.prefill_ms = prefill_time.ms();

    generate(request, var, max_new_tokens, std::move(logits), on_text, answer);
    answer.visual_spans = conversation_.visual_spans();
    answer.var = conversation_.statistics(var);
    answer.timing.load_ms = loaded_.load_ms;
    answer.timing.peak_memory_bytes = peak_memory_bytes(loaded_.target.device);
    caches_changed_ = false;
    return answer;
  }

  /// Tokens that can be generated before the context ends.
  std::int64_t room_for_answer(const Sequence& prompt, std::int64_t wanted) const {
    const std::int64_t context = loaded_.config.decoder.max_positions;
    const std::int64_t earlier = conversation_.length() + (has_unfed_token() ? 1 : 0),
                       rows = static_cast<std::int64_t>(prompt.ids.size());
    const std::int64_t room = context - earlier - rows;
    if (room < 1) {
      const std::string behind =
          earlier > 0 ? c10::str(" behind ", earlier, " of earlier turns") : std::string();
      throw InputError(c10::str("prompt: ", rows, " tokens", behind,
                                " leave no room for an answer, the context is ", context,
                                " tokens long"));
    }
    return std::min(wanted, room);
  }

  bool is_stop_token(std::int64_t token) const {
    const auto& stop_tokens = loaded_.config.stop_tokens;
    return std::find(stop_tokens.begin(), stop_tokens.end(), token) != stop_tokens.end();
  }

  /// The last token of an answer has been chosen, but has not passed through the decoder. A stop
  /// token is left to the prompt style, which has it in its separator or does without.
  bool has_unfed_token() const { return pending_ && !is_stop_token(*pending_); }

  void generate(const Request& request, const VarParams& var, std::int64_t max_new_tokens,
                at::Tensor logits, const TextCallback& on_text, Answer& answer) {
    Sampler sampler(request.generation);
    StreamDecoder decoder(*loaded_.tokenizer);
    const auto give = [&](const std::string& piece) {
      return piece.empty() || !on_text || on_text(piece);
    };
    std::vector<at::Tensor> rows;
    const Stopwatch decode_time;
    for (;;) {
      const std::int64_t token = sampler(logits);
      if (request.return_logits) rows.push_back(logits.to(at::kCPU, at::kFloat));
      pending_ = token;
      if (is_stop_token(token)) {
        answer.finish_reason = FinishReason::kStop;
        break;
      }
      answer.tokens.push_back(token);
      if (!give(decoder.push(token))) {
        answer.finish_reason = FinishReason::kCancelled;
        break;
      }
      if (static_cast<std::int64_t>(answer.tokens.size()) == max_new_tokens) {
        answer.finish_reason = FinishReason::kLength;
        break;
      }
      logits = conversation_.step(token, var);
      ++answer.timing.decode_tokens;
    }
    answer.timing.decode_ms = decode_time.ms();
    if (answer.timing.decode_tokens > 0) {
      const auto steps = static_cast<double>(answer.timing.decode_tokens);
      answer.timing.tokens_per_second = 1000.0 * steps / answer.timing.decode_ms;
    }
    const std::string rest = decoder.finish();
    if (answer.finish_reason != FinishReason::kCancelled) give(rest);
    answer.text = loaded_.tokenizer->decode(answer.tokens);
    if (request.return_logits) answer.logits = at::stack(rows);
  }

  std::shared_ptr<const Model> model_;
  const LoadedModel& loaded_;
  Conversation conversation_;
  std::optional<std::int64_t> pending_;  // the last token of the last answer
  bool caches_changed_ = false;
};

Session::Session(std::shared_ptr<const Model> model, SessionOptions options) {
  if (!model) throw ConfigError("Session: no model");
  if (options.prefill_chunk < 0) {
    throw ConfigError(
        c10::str("SessionOptions: prefill_chunk must be >= 0, got ", options.prefill_chunk));
  }
  const c10::InferenceMode inference;
  state_ = std::make_unique<State>(std::move(model), options);
}

Session::~Session() = default;
Session::Session(Session&&) noexcept = default;
Session& Session::operator=(Session&&) noexcept = default;

Answer Session::ask(const Request& request, const TextCallback& on_text) {
  state_->reset();
  return state_->answer(request, on_text);
}

Answer Session::follow_up(const Request& request, const TextCallback& on_text) {
  return state_->answer(request, on_text);
}

void Session::reset() {
  state_->reset();
}

void Session::set_hooks(const PassHooks& hooks) {
  state_->set_hooks(hooks);
}

std::int64_t Session::length() const {
  return state_->length();
}

}  // namespace libvar
