#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar {

/// How many sequences a batch has, and what it may keep and take.
struct BatchOptions {
  std::int64_t batch = 8;          ///< most sequences that are decoded together, >= 1
  std::int64_t prefixes = 2;       ///< prefilled images that are kept for later questions, >= 0
  std::int64_t prefill_chunk = 0;  ///< as SessionOptions::prefill_chunk
  bool cuda_graph = true;          ///< as SessionOptions::cuda_graph
  std::int64_t memory_bytes = 0;   ///< as SessionOptions::memory_bytes
};

/// Gets the answers in the order of the requests, each as soon as it and those before it are there;
/// returning false ends the run, as FinishReason::kCancelled ends an answer.
using AnswerCallback = std::function<bool(std::size_t index, const Answer& answer)>;

/// Called before each prompt and each step; returning false ends the run, and what is not answered yet is dropped.
using StepCallback = std::function<bool()>;

/// Many questions at a time. Used by one thread at a time.
///
/// The weights are read once for each step of all sequences; when one ends, the next request takes
/// its place. Requests may differ in images, lengths and settings; those that differ in
/// VarParams::sources, targets, head_rule, ratio_epsilon, phi_epsilon or generated_sinks are not
/// decoded together. What prompts have in common up to the end of their last image is computed once
/// while it is kept (BatchOptions::prefixes): images and the tokens before and between them, and,
/// with several images, the settings of VAR must be equal.
///
/// Numerics: an answer does not depend on whether its prefix was there. It equals that of
/// Session::ask but for rounding: prompts are computed in two parts, and matrix products of several
/// rows may round otherwise than those of one (float32 on a CPU: they don't, up to eight rows).
/// Float32, measured on the goldens: equal tokens, logits within 2e-5 of the largest. Half types,
/// measured by ./dev soak --dtype: as long as the tokens are equal, logits within 16 roundings
/// (2^-8 in bfloat16, 2^-11 in float16) of the largest; tokens part only where the two largest
/// logits are closer than 8 of them.
class BatchSession {
 public:
  /// @throws ConfigError  no model, or options out of range
  explicit BatchSession(std::shared_ptr<const Model> model, BatchOptions options = {});
  ~BatchSession();
  BatchSession(BatchSession&&) noexcept;
  BatchSession& operator=(BatchSession&&) noexcept;

  /// Answers all requests; timing of vision and prefill is 0 where a kept prefix was taken over.
  /// @throws InputError, ConfigError  as Session::ask, for the first request that can't be
  ///          answered, when all before it are: it is the one behind the last answer given
  /// @throws  other errors at once; answers given before stay given
  void ask(const std::vector<Request>& requests, const AnswerCallback& on_answer,
           const StepCallback& on_step = {});

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace libvar
