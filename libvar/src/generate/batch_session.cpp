#include "libvar/batch_session.h"

#include <ATen/ops/equal.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <exception>
#include <list>
#include <map>
#include <optional>
#include <utility>

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
namespace {

/// What the rows up to the end of the last image depend on.
struct PrefixKey {
  std::vector<std::int64_t> ids;
  std::vector<ProcessedImage> images;
  std::optional<float> phi_epsilon;
  std::optional<VarParams> var;  ///< where text between images may be changed

  bool operator==(const PrefixKey& other) const {
    return ids == other.ids && phi_epsilon == other.phi_epsilon && var == other.var &&
           std::equal(images.begin(), images.end(), other.images.begin(), other.images.end(),
                      [](const ProcessedImage& a, const ProcessedImage& b) {
                        return a.grid_rows == b.grid_rows && a.grid_columns == b.grid_columns &&
                               a.pixels.sizes() == b.pixels.sizes() &&
                               at::equal(a.pixels, b.pixels);
                      });
  }
};

/// The prefix of a prompt, or none: it has no images, or ends with one.
std::optional<PrefixKey> prefix_key(const PreparedPrompt& prepared, const VarParams& var) {
  const Sequence& prompt = prepared.sequence;
  if (prompt.visual_spans.empty()) return std::nullopt;
  const std::int64_t end = prompt.visual_spans.back().second;
  if (end == static_cast<std::int64_t>(prompt.ids.size())) return std::nullopt;
  PrefixKey key;
  key.ids.assign(prompt.ids.begin(), prompt.ids.begin() + end);
  key.images = prepared.images;
  key.phi_epsilon = var.phi_epsilon;
  if (prompt.visual_spans.size() > 1) key.var = var;
  return key;
}

/// One sequence of the batch.
struct Slot {
  std::size_t index = 0;  // of the request
  VarParams var;
  Answer answer;
  std::unique_ptr<Conversation> conversation;
  std::unique_ptr<Generation> generation;
};

}  // namespace

class BatchSession::State {
 public:
  State(std::shared_ptr<const Model> model, const BatchOptions& options)
      : model_(std::move(model)),
        loaded_(model_->loaded()),
        options_(options),
        cache_(loaded_.config.decoder, loaded_.target, options.batch),
        step_(loaded_.decoder, options.batch,
              options.cuda_graph && loaded_.target.device.is_cuda()) {}

  void ask(const std::vector<Request>& requests, const AnswerCallback& on_answer,
           const StepCallback& on_step) {
    const c10::InferenceMode inference;
    with_resource_errors("batch session", [&] {
      std::map<std::size_t, Answer> waiting;  // for those before them
      std::size_t next = 0, given = 0;
      std::optional<Pending> pending;
      std::exception_ptr refused;  // the request `next`
      forget();
      const auto admit_next = [&] {
        if (is_full_ || refused || next == requests.size()) return false;
        try {
          if (!pending) pending = prepare(requests, next);
        } catch (const Error&) {
          refused = std::current_exception();
          return false;
        }
        is_full_ = !admit(requests, *pending);
        if (is_full_) return false;
        pending.reset();
        ++next;
        return true;
      };
      const auto give = [&] {  // what is done, in order; whether to go on
        for (auto& [index, answer] : done_) waiting.emplace(index, std::move(answer));
        done_.clear();
        for (auto at = waiting.find(given); at != waiting.end(); at = waiting.find(given)) {
          const bool goes_on = on_answer(given, at->second);
          waiting.erase(at);
          ++given;
          if (!goes_on) return false;
        }
        return true;
      };
      while (given < requests.size()) {
        if (refused && given == next) std::rethrow_exception(refused);
        if (on_step && !on_step()) return;
        try {
          if (!admit_next()) step();
        } catch (...) {
          give();
          throw;
        }
        if (!give()) return;
      }
    });
  }

 private:
  /// A request whose prompt is ready, before it has a place in the batch.
  struct Pending {
    std::size_t index;
    VarParams var;
    PreparedPrompt prompt;
    std::int64_t max_new_tokens;
    double vision_ms;
  };

  Pending prepare(const std::vector<Request>& requests, std::size_t index) {
    const Request& request = requests[index];
    validate(request.generation);
    const VarParams var = resolve_var(request, loaded_);
    const Stopwatch time;
    PreparedPrompt prompt = prepare_prompt(loaded_, request, /*first_turn=*/true);
    const std::int64_t room = room_for_answer(loaded_, prompt.sequence, request, 0);
    return {index, var, std::move(prompt), room, time.ms()};
  }

  /// Gives a request a place if there is one for it now. An empty batch takes any.
  bool admit(const std::vector<Request>& requests, const Pending& pending) {
    const auto needed =
        static_cast<std::int64_t>(pending.prompt.sequence.ids.size()) + pending.max_new_tokens;
    if (slots_.empty()) shared_.reset();
    const bool fits =
        static_cast<std::int64_t>(slots_.size()) < options_.batch &&
        (slots_.empty() || needed <= cache_.capacity()) &&
        (!pending.var.enabled || !shared_ || *shared_ == shared_settings(pending.var));
    if (!fits) return false;
    const std::optional<MemoryPlan> plan = plan_for(requests[pending.index], pending, needed);
    if (!plan) return false;
    if (needed > cache_.capacity()) {
      cache_.clear();
      cache_.reserve(capacity_for(needed));
    }
    if (pending.var.enabled) shared_ = shared_settings(pending.var);
    start(requests[pending.index], pending, *plan);
    return true;
  }

  std::int64_t capacity_for(std::int64_t needed) const {
    return std::min(needed + needed / 4, loaded_.config.decoder.max_positions);
  }

  /// None: others must end first. Kept prefixes go where an empty batch needs their memory.
  std::optional<MemoryPlan> plan_for(const Request& request, const Pending& pending,
                                     std::int64_t needed) {
    PlannedWork work;
    work.rows = static_cast<std::int64_t>(pending.prompt.sequence.ids.size());
    work.new_tokens = pending.max_new_tokens;
    work.sequences = options_.batch;
    work.prefill_chunk = options_.prefill_chunk;
    work.keeps_logits = request.return_logits;
    work.images = &pending.prompt.images;
    const auto plan = [&] {
      std::int64_t kept = 0;
      for (const auto& [key, prefix] : prefixes_) kept += prefix.cache ? prefix.cache->bytes() : 0;
      const KvCache prefix(loaded_.config.decoder, loaded_.target);
      work.cache_bytes =
          (needed > cache_.capacity() ? cache_.bytes_to_reserve(capacity_for(needed)) : 0) +
          prefix.bytes_to_reserve(work.rows);
      return plan_memory(
          loaded_.config, loaded_.target, work,
          memory_for_request(loaded_.target.device, options_.memory_bytes, cache_.bytes() + kept));
    };
    MemoryPlan result = plan();
    if (result.fits()) return result;
    if (!slots_.empty()) return std::nullopt;
    prefixes_.clear();
    result = plan();
    require_memory(result, work, loaded_.config);
    return result;
  }

  void start(const Request& request, const Pending& pending, const MemoryPlan& plan) {
    Slot slot;
    slot.index = pending.index;
    slot.var = pending.var;
    const auto place = static_cast<std::int64_t>(slots_.size());
    KvCache cache = cache_.sequences(place, 1, 0);
    cache.clear();
    slot.conversation =
        std::make_unique<Conversation>(loaded_.decoder, plan.prefill_chunk, std::move(cache));
    const Sequence& prompt = pending.prompt.sequence;
    slot.answer.prompt_tokens = prompt.ids;
    PromptPrefix* prefix = find_prefix(pending);
    std::vector<at::Tensor> features;
    if (prefix == nullptr || !prefix->cache) {
      const Stopwatch vision_time;
      features = loaded_.encode_images(pending.prompt.images, plan.tiles_at_once);
      synchronize(loaded_.target.device);
      slot.answer.timing.vision_ms = pending.vision_ms + vision_time.ms();
    }
    const Stopwatch prefill_time;
    const at::Tensor logits =
        slot.conversation->prefill(prompt, features, pending.var, pending.max_new_tokens, prefix);
    if (options_.prefixes == 0) prefixes_.clear();
    synchronize(loaded_.target.device);
    slot.answer.timing.prefill_ms = prefill_time.ms();
    slot.generation =
        std::make_unique<Generation>(loaded_, request, pending.max_new_tokens, TextCallback());
    end_steps();
    slots_.push_back(std::move(slot));
    if (!slots_.back().generation->choose(logits)) finish(slots_.size() - 1);
  }

  /// The prefix of a prompt, kept or new and empty; the one that was not used for the longest time
  /// goes. Null: the prompt has none.
  PromptPrefix* find_prefix(const Pending& pending) {
    std::optional<PrefixKey> key = prefix_key(pending.prompt, pending.var);
    if (!key) return nullptr;
    auto found = std::find_if(prefixes_.begin(), prefixes_.end(),
                              [&](const auto& one) { return one.first == *key; });
    if (found != prefixes_.end()) {
      prefixes_.splice(prefixes_.begin(), prefixes_, found);
      return &prefixes_.front().second;
    }
    const auto kept = std::max<std::size_t>(static_cast<std::size_t>(options_.prefixes), 1);
    while (prefixes_.size() >= kept) prefixes_.pop_back();
    PromptPrefix prefix;
    prefix.rows = static_cast<std::int64_t>(key->ids.size());
    prefixes_.emplace_front(std::move(*key), std::move(prefix));
    return &prefixes_.front().second;
  }

  /// One token of every sequence.
  void step() {
    if (slots_.empty()) return;
    if (!stepping_) begin_steps();
    const std::vector<std::int64_t> tokens = step_.run();
    const at::Tensor logits = step_.logits();  // [B, V]
    for (Slot& slot : slots_) slot.conversation->count_step();
    for (std::size_t i = slots_.size(); i-- > 0;) {
      if (!slots_[i].generation->take(tokens[i], logits[static_cast<std::int64_t>(i)])) finish(i);
    }
  }

  void begin_steps() {
    std::vector<StepSequence> sequences;
    for (const Slot& slot : slots_) {
      sequences.push_back({*slot.generation->token(), slot.conversation->length(),
                           slot.conversation->next_position(), slot.generation->draws(), slot.var,
                           slot.generation->params()});
    }
    step_.begin(sequences, cache_.sequences(0, static_cast<std::int64_t>(slots_.size()), 0));
    stepping_ = true;
  }

  /// The sequences are about to change.
  void end_steps() {
    if (!stepping_) return;
    const at::Tensor selected = step_.take_selected_rows();  // [layers, B]
    for (std::size_t i = 0; i < slots_.size(); ++i)
      slots_[i].conversation->add_selected_rows(selected.select(1, static_cast<std::int64_t>(i)));
    step_.end();
    stepping_ = false;
  }

  /// Completes a sequence's answer; the last one takes its place.
  void finish(std::size_t at) {
    end_steps();
    Slot& slot = slots_[at];
    slot.generation->finish(slot.answer);
    slot.answer.visual_spans = slot.conversation->visual_spans();
    slot.answer.var = slot.conversation->statistics(slot.var);
    slot.answer.timing.load_ms = loaded_.load_ms;
    slot.answer.timing.peak_memory_bytes = peak_memory_bytes(loaded_.target.device);
    done_.emplace_back(slot.index, std::move(slot.answer));
    if (at + 1 < slots_.size()) {
      slots_.back().conversation->move_to(cache_.sequences(static_cast<std::int64_t>(at), 1, 0));
      slots_[at] = std::move(slots_.back());
    }
    slots_.pop_back();
    is_full_ = false;
  }

  /// What is left of questions that ended with an error or were stopped.
  void forget() {
    if (stepping_) step_.end();
    stepping_ = false;
    is_full_ = false;
    slots_.clear();
    done_.clear();
  }

  std::shared_ptr<const Model> model_;
  const LoadedModel& loaded_;
  BatchOptions options_;
  KvCache cache_;
  DecodeStep step_;
  bool stepping_ = false;            // step_ knows the slots as they are
  bool is_full_ = false;             // the next question waits until another ends
  std::vector<Slot> slots_;          // slot i is sequence i of the cache
  std::optional<VarParams> shared_;  // of the slots whose VAR is on; none: there is no such slot
  std::vector<std::pair<std::size_t, Answer>> done_;
  std::list<std::pair<PrefixKey, PromptPrefix>> prefixes_;  // the last used first
};

BatchSession::BatchSession(std::shared_ptr<const Model> model, BatchOptions options) {
  if (!model) throw ConfigError("BatchSession: no model");
  const auto check = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least)
      throw ConfigError(c10::str("BatchOptions: ", name, " must be >= ", least, ", got ", value));
  };
  check("batch", options.batch, 1);
  check("prefixes", options.prefixes, 0);
  check("prefill_chunk", options.prefill_chunk, 0);
  check("memory_bytes", options.memory_bytes, 0);
  const c10::InferenceMode inference;
  state_ = std::make_unique<State>(std::move(model), options);
}

BatchSession::~BatchSession() = default;
BatchSession::BatchSession(BatchSession&&) noexcept = default;
BatchSession& BatchSession::operator=(BatchSession&&) noexcept = default;

void BatchSession::ask(const std::vector<Request>& requests, const AnswerCallback& on_answer,
                       const StepCallback& on_step) {
  state_->ask(requests, on_answer, on_step);
}

}  // namespace libvar
