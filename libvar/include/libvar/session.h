#pragma once

#include <cstdint>
#include <memory>

#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar {

struct PassHooks;

/// How a session computes, and how much memory it may take.
struct SessionOptions {
  /// Most rows of the prompt computed at once; 0: all, or as many as there is memory for.
  std::int64_t prefill_chunk = 0;
  bool cuda_graph =
      true;  ///< on CUDA: decode steps are captured and replayed; results are the same
  /// Most bytes that caches and activations may take; 0: what is available. See Session.
  std::int64_t memory_bytes = 0;
};

/// One conversation with a model: caches and sampler. Used by one thread at a time.
///
/// The memory that a request needs is computed before any work is done for it. Where it does not
/// suffice for the whole prompt or all tiles of the pictures at once, they are computed in parts,
/// which changes logits by rounding alone; where it does not suffice for that, the request is
/// refused.
class Session {
 public:
  /// @throws ConfigError  no model, or options out of range
  explicit Session(std::shared_ptr<const Model> model, SessionOptions options = {});
  ~Session();
  Session(Session&&) noexcept;
  Session& operator=(Session&&) noexcept;

  /// Starts a new conversation and answers.
  ///
  /// @throws InputError   an image can't be read, image places and images differ in number, the
  /// prompt is too long
  /// @throws ConfigError  parameters out of range
  /// @throws ResourceError  there is not enough memory: with what is needed and what is available
  Answer ask(const Request& request, const TextCallback& on_text = {});

  /// Answers a further question in the same conversation; earlier turns stay in the caches, and the
  /// request's VAR settings act from its first new token on. Without an earlier turn it is ask.
  ///
  /// Answer::prompt_tokens are those of this turn; visual_spans and visual sinks count positions
  /// from the beginning of the conversation.
  /// @throws      as ask; after an error in the middle of an answer the conversation is forgotten
  ///              (length() is 0)
  Answer follow_up(const Request& request, const TextCallback& on_text = {});

  /// Forgets the conversation.
  void reset();

  /// Positions that the conversation takes up in the caches so far; 0: there is none.
  std::int64_t length() const;

  /// What looks at every later pass of the decoder, or changes it; for the library itself.
  void set_hooks(const PassHooks& hooks);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace libvar
