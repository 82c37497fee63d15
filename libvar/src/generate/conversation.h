#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "decoder/decoder.h"
#include "decoder/kv_cache.h"
#include "decoder/sequence.h"
#include "libvar/request.h"

namespace libvar {

/// What prompts begin with that share their images: rows [0, rows), computed apart from the rest.
struct PromptPrefix {
  std::int64_t rows = 0;
  std::optional<KvCache> cache;  ///< of the rows; none: they have not been computed yet
  at::Tensor selected_rows;      ///< of the rows, [layers]
};

/// The positions of one conversation and what the decoder keeps of them; knows no text.
class Conversation {
 public:
  /// @param decoder        must outlive the conversation
  /// @param prefill_chunk  most rows of a prompt computed at once; 0: all
  Conversation(const Decoder& decoder, std::int64_t prefill_chunk);
  /// @param cache  where it is kept: an empty one
  Conversation(const Decoder& decoder, std::int64_t prefill_chunk, KvCache cache);

  /// What looks at every later pass, or changes it.
  void set_hooks(PassHooks hooks) { hooks_ = std::move(hooks); }

  /// Most rows of a later prompt computed at once; 0: all.
  void set_prefill_chunk(std::int64_t rows) { prefill_chunk_ = rows; }

  /// Forgets every position.
  void clear();

  /// Positions so far.
  std::int64_t length() const { return cache_.length(); }

  /// Runs a prompt behind the positions so far.
  ///
  /// @param features    [visual tokens, D] for each image; not read with a prefix that is there
  /// @param new_tokens  room to make for generated tokens
  /// @param prefix      of this first prompt, or null: taken over where it is there, else computed
  ///                    and kept in it. The result is the same bit for bit.
  /// @return            [V] logits of the token that follows
  at::Tensor prefill(const Sequence& prompt, const std::vector<at::Tensor>& features,
                     const VarParams& var, std::int64_t new_tokens, PromptPrefix* prefix = nullptr);

  /// Runs one generated token. @return [V] logits of the token that follows
  at::Tensor step(std::int64_t token, const VarParams& var);

  /// The rotary position of a token that is generated next.
  std::int64_t next_position() const;

  /// Whether something looks at the passes or changes them: then steps must be run here.
  bool has_hooks() const;

  /// A generated token was run outside, by a DecodeStep.
  void count_step();

  /// What VAR changed in such steps. @param selected_rows  [layers]
  void add_selected_rows(const at::Tensor& selected_rows) { selected_rows_.add_(selected_rows); }

  /// Goes on in another cache.
  void move_to(KvCache cache);

  /// What VAR did since the last prefill began, that prompt included.
  VarStatistics statistics(const VarParams& var) const;

  /// Where the images are, in positions of the conversation.
  const std::vector<std::pair<std::int64_t, std::int64_t>>& visual_spans() const {
    return visual_spans_;
  }

  const KvCache& cache() const { return cache_; }

 private:
  /// [1, Q, D] embeddings, used up -> [1, 1, D] behind the final norm, of the last position.
  at::Tensor run(const at::Tensor& embeddings, const at::Tensor& positions, const VarParams& var,
                 bool generated);
  /// Runs rows [begin, end) of a prompt in chunks; embeddings and positions begin at `begin`.
  at::Tensor run_rows(std::int64_t begin, std::int64_t end, const at::Tensor& embeddings,
                      const at::Tensor& positions, const VarParams& var);
  std::vector<std::vector<std::int64_t>> visual_sinks(float tau) const;
  std::int64_t text_rows_from(std::int64_t position) const;

  const Decoder* decoder_;
  std::int64_t prefill_chunk_;
  PassHooks hooks_;
  KvCache cache_;
  std::vector<std::pair<std::int64_t, std::int64_t>> visual_spans_;
  std::int64_t next_position_ = 0;  // of the next token; not its index where images are smaller
  std::int64_t turn_begin_ = 0;     // first position of the last prompt
  at::Tensor selected_rows_;        // [layers] int64 on the device
};

}  // namespace libvar
