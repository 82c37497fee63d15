#include "libvar/session.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "generate/conversation.h"
#include "generate/decode_step.h"
#include "generate/generation.h"
#include "generate/memory_plan.h"
#include "generate/prepare_prompt.h"
#include "libvar/error.h"
#include "loaded_model.h"
#include "resource_errors.h"

namespace libvar {

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
        options_(options),
        conversation_(loaded_.decoder, options.prefill_chunk),
        step_(loaded_.decoder, /*batch=*/1, options.cuda_graph && loaded_.target.device.is_cuda()) {
  }

  void reset() {
    const c10::InferenceMode inference;
    conversation_.clear();
    step_.end();
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
    const VarParams var = resolve_var(request, loaded_);
    const Stopwatch vision_time;
    const PreparedPrompt prepared =
        prepare_prompt(loaded_, request, /*first_turn=*/conversation_.length() == 0);
    const Sequence& prompt = prepared.sequence;
    const std::int64_t max_new_tokens = room_for_answer(
        loaded_, prompt, request, conversation_.length() + (has_unfed_token() ? 1 : 0));

    const MemoryPlan plan = plan_or_throw(request, prepared, max_new_tokens);
    conversation_.set_prefill_chunk(plan.prefill_chunk);

    Answer answer;
    answer.prompt_tokens = prompt.ids;
    const std::vector<at::Tensor> features =
        loaded_.encode_images(prepared.images, plan.tiles_at_once);
    synchronize(loaded_.target.device);
    answer.timing.vision_ms = vision_time.ms();

    caches_changed_ = true;
    const Stopwatch prefill_time;
    if (has_unfed_token()) conversation_.step(*pending_, var);
    const at::Tensor logits = conversation_.prefill(prompt, features, var, max_new_tokens);
    synchronize(loaded_.target.device);
    answer.timing.prefill_ms = prefill_time.ms();

    Generation generation(loaded_, request, max_new_tokens, on_text);
    if (generation.choose(logits)) generate(generation, var);
    generation.finish(answer);
    pending_ = generation.token();
    answer.visual_spans = conversation_.visual_spans();
    answer.var = conversation_.statistics(var);
    answer.timing.load_ms = loaded_.load_ms;
    answer.timing.peak_memory_bytes = peak_memory_bytes(loaded_.target.device);
    caches_changed_ = false;
    return answer;
  }

  MemoryPlan plan_or_throw(const Request& request, const PreparedPrompt& prepared,
                           std::int64_t max_new_tokens) const {
    const KvCache& cache = conversation_.cache();
    PlannedWork work;
    work.rows = static_cast<std::int64_t>(prepared.sequence.ids.size());
    work.new_tokens = max_new_tokens;
    work.prefill_chunk = options_.prefill_chunk;
    work.cache_bytes = cache.bytes_to_reserve(cache.length() + (has_unfed_token() ? 1 : 0) +
                                              work.rows + max_new_tokens);
    work.keeps_logits = request.return_logits;
    work.images = &prepared.images;
    const MemoryPlan plan = plan_memory(
        loaded_.config, loaded_.target, work,
        memory_for_request(loaded_.target.device, options_.memory_bytes, cache.bytes()));
    require_memory(plan, work, loaded_.config);
    return plan;
  }

  /// Generates behind the first token.
  void generate(Generation& generation, const VarParams& var) {
    if (conversation_.has_hooks()) {
      while (generation.choose(conversation_.step(*generation.token(), var))) {
      }
      return;
    }
    step_.begin({{*generation.token(), conversation_.length(), conversation_.next_position(),
                  generation.draws(), var, generation.params()}},
                conversation_.cache());
    bool goes_on = true;
    while (goes_on) {
      const std::int64_t token = step_.run().front();
      conversation_.count_step();
      goes_on = generation.take(token, step_.logits()[0]);
    }
    conversation_.add_selected_rows(step_.take_selected_rows().select(1, 0));
    step_.end();
  }

  /// The last token of an answer has been chosen, but has not passed through the decoder. A stop
  /// token is left to the prompt style, which has it in its separator or does without.
  bool has_unfed_token() const { return pending_ && !loaded_.is_stop_token(*pending_); }

  std::shared_ptr<const Model> model_;
  const LoadedModel& loaded_;
  SessionOptions options_;
  Conversation conversation_;
  DecodeStep step_;
  std::optional<std::int64_t> pending_;  // the last token of the last answer
  bool caches_changed_ = false;
};

Session::Session(std::shared_ptr<const Model> model, SessionOptions options) {
  if (!model) throw ConfigError("Session: no model");
  if (options.prefill_chunk < 0) {
    throw ConfigError(
        c10::str("SessionOptions: prefill_chunk must be >= 0, got ", options.prefill_chunk));
  }
  if (options.memory_bytes < 0) {
    throw ConfigError(
        c10::str("SessionOptions: memory_bytes must be >= 0, got ", options.memory_bytes));
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
