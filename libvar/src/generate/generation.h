#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "decoder/sequence.h"
#include "generate/sampler.h"
#include "libvar/request.h"
#include "loaded_model.h"

namespace libvar {

class Stopwatch {
 public:
  double ms() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_)
        .count();
  }

 private:
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

/// A request's settings of VAR as the decoder reads them.
/// @throws ConfigError  out of range, or not for this model
VarParams resolve_var(const Request& request, const LoadedModel& model);

/// Tokens that can be generated before the context ends, at most request's.
/// @param earlier  positions before the prompt
/// @throws InputError  there is no room for any
std::int64_t room_for_answer(const LoadedModel& model, const Sequence& prompt,
                             const Request& request, std::int64_t earlier);

/// The tokens of one answer, chosen one after another, until a stop token, the length or the
/// callback ends it.
class Generation {
 public:
  /// @param model  must outlive this
  Generation(const LoadedModel& model, const Request& request, std::int64_t max_new_tokens,
             TextCallback on_text);

  /// Chooses a token. @param logits  [V]  @return whether the answer goes on
  bool choose(const at::Tensor& logits);

  /// Takes a token that was chosen. @param logits  [V] that it was chosen from
  /// @return        whether the answer goes on
  /// @throws Error  token is -1: the logits are not finite
  bool take(std::int64_t token, const at::Tensor& logits);

  /// The token that was chosen last.
  std::optional<std::int64_t> token() const { return token_; }

  const GenerationParams& params() const { return params_; }

  /// Tokens chosen so far.
  std::uint64_t draws() const { return tokens_.size(); }

  /// Gives the rest of the text and fills text, tokens, finish_reason, logits and the timing of
  /// the decode steps.
  void finish(Answer& answer);

 private:
  bool give(const std::string& piece) const {
    return piece.empty() || !on_text_ || on_text_(piece);
  }

  const LoadedModel* model_;
  bool keeps_logits_;
  std::int64_t max_new_tokens_;
  TextCallback on_text_;
  GenerationParams params_;
  StreamDecoder decoder_;
  std::optional<std::int64_t> token_;
  std::vector<std::int64_t> tokens_;
  std::vector<at::Tensor> logits_;
  FinishReason finish_reason_ = FinishReason::kStop;
  std::int64_t steps_ = 0;
  Stopwatch time_;
};

}  // namespace libvar
