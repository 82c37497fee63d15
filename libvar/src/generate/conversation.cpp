#include "generate/conversation.h"

#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <utility>

namespace libvar {

Conversation::Conversation(const Decoder& decoder, std::int64_t prefill_chunk)
    : Conversation(decoder, prefill_chunk, KvCache(decoder.config(), decoder.target())) {}

Conversation::Conversation(const Decoder& decoder, std::int64_t prefill_chunk, KvCache cache)
    : decoder_(&decoder), prefill_chunk_(prefill_chunk), cache_(std::move(cache)) {}

void Conversation::clear() {
  cache_.clear();
  visual_spans_.clear();
  turn_begin_ = 0;
  next_position_ = 0;
}

at::Tensor Conversation::prefill(const Sequence& prompt, const std::vector<at::Tensor>& features,
                                 const VarParams& var, std::int64_t new_tokens,
                                 PromptPrefix* prefix) {
  const auto rows = static_cast<std::int64_t>(prompt.ids.size());
  turn_begin_ = cache_.length();
  selected_rows_ =
      at::zeros({decoder_->config().num_layers},
                at::TensorOptions().dtype(at::kLong).device(decoder_->target().device));
  cache_.reserve(turn_begin_ + rows + new_tokens);
  for (const auto& [begin, end] : prompt.visual_spans) {
    visual_spans_.emplace_back(turn_begin_ + begin, turn_begin_ + end);
    cache_.mark_visual(turn_begin_ + begin, turn_begin_ + end);
  }
  at::Tensor positions;  // undefined: indices in the cache
  if (decoder_->config().position_axes() > 1) {
    const at::Tensor on_host = three_axis_positions(prompt, next_position_);
    next_position_ = on_host.max().item<std::int64_t>() + 1;
    positions = on_host.to(decoder_->target().device);
  }
  if (prefix != nullptr && prefix->cache) {
    cache_.copy_from(*prefix->cache, prefix->rows);
    selected_rows_.copy_(prefix->selected_rows);
    const at::Tensor rest = at::tensor(
        at::ArrayRef<std::int64_t>(prompt.ids).slice(static_cast<std::size_t>(prefix->rows)),
        at::kLong);
    const at::Tensor last =
        run_rows(prefix->rows, rows, decoder_->embed(rest).unsqueeze(0), positions, var);
    return decoder_->logits(last).flatten();
  }
  const at::Tensor embeddings = embed_sequence(*decoder_, prompt, features);
  const std::int64_t split = prefix != nullptr ? prefix->rows : 0;
  if (split > 0) {
    run_rows(0, split, embeddings.narrow(1, 0, split), positions, var);
    KvCache kept(decoder_->config(), decoder_->target());
    kept.reserve(split);
    kept.copy_from(cache_, split);
    prefix->selected_rows = selected_rows_.clone();
    prefix->cache = std::move(kept);  // last: without it nothing of the prefix is there
  }
  const at::Tensor last =
      run_rows(split, rows, embeddings.narrow(1, split, rows - split), positions, var);
  return decoder_->logits(last).flatten();
}

at::Tensor Conversation::run_rows(std::int64_t begin, std::int64_t end,
                                  const at::Tensor& embeddings, const at::Tensor& positions,
                                  const VarParams& var) {
  const std::int64_t chunk = prefill_chunk_ > 0 ? prefill_chunk_ : end - begin;
  at::Tensor last;
  for (std::int64_t at = begin; at < end; at += chunk) {
    const std::int64_t count = std::min(chunk, end - at);
    last = run(embeddings.narrow(1, at - begin, count),
               positions.defined() ? positions.narrow(1, at, count) : positions, var,
               /*generated=*/false);
  }
  return last;
}

std::int64_t Conversation::next_position() const {
  return decoder_->config().position_axes() > 1 ? next_position_ : cache_.length();
}

bool Conversation::has_hooks() const {
  return hooks_.layer || hooks_.attention || hooks_.sink_scores || hooks_.drops_source_mass;
}

void Conversation::count_step() {
  cache_.advance(1);
  ++next_position_;
}

void Conversation::move_to(KvCache cache) {
  cache.copy_from(cache_, cache_.length());
  cache_ = std::move(cache);
}

at::Tensor Conversation::step(std::int64_t token, const VarParams& var) {
  cache_.reserve(cache_.length() + 1);
  const at::Tensor embedding = decoder_->embed(at::tensor({token}, at::kLong)).unsqueeze(0);
  at::Tensor positions;
  if (const std::int64_t axes = decoder_->config().position_axes(); axes > 1) {
    positions = at::full({axes, 1}, next_position_++,
                         at::TensorOptions().dtype(at::kLong).device(decoder_->target().device));
  }
  return decoder_->logits(run(embedding, positions, var, /*generated=*/true)).flatten();
}

at::Tensor Conversation::run(const at::Tensor& embeddings, const at::Tensor& positions,
                             const VarParams& var, bool generated) {
  DecoderPass pass;
  pass.positions = positions;
  // The end of the first image of the whole conversation, not of the chunk: rows before it see no
  // other image's text.
  pass.plain_end = visual_spans_.empty() ? std::numeric_limits<std::int64_t>::max()
                                         : visual_spans_.front().second;
  pass.var = var;
  pass.generated = generated;
  pass.selected_rows = selected_rows_;
  pass.hooks = &hooks_;
  return (*decoder_)(embeddings, pass, cache_);
}

std::vector<std::vector<std::int64_t>> Conversation::visual_sinks(float tau) const {
  std::vector<std::vector<std::int64_t>> result(
      static_cast<std::size_t>(decoder_->config().num_layers));
  if (visual_spans_.empty()) return result;
  const at::Tensor phi = cache_.all_sink_scores().select(1, 0).to(at::kCPU);  // [layers, positions]
  const auto scores = phi.accessor<float, 2>();
  for (std::size_t layer = 0; layer < result.size(); ++layer) {
    for (const auto& [begin, end] : visual_spans_) {
      for (std::int64_t position = begin; position < std::min(end, cache_.length()); ++position) {
        if (scores[static_cast<std::int64_t>(layer)][position] >= tau)
          result[layer].push_back(position);
      }
    }
  }
  return result;
}

std::int64_t Conversation::text_rows_from(std::int64_t position) const {
  std::int64_t rows = std::max<std::int64_t>(cache_.length() - position, 0);
  for (const auto& [begin, end] : visual_spans_)
    rows -= std::max<std::int64_t>(end - std::max(begin, position), 0);
  return rows;
}

VarStatistics Conversation::statistics(const VarParams& var) const {
  VarStatistics result;
  result.params = var;
  result.visual_sinks = visual_sinks(var.tau);
  const auto layers = result.visual_sinks.size();
  const at::Tensor selected = selected_rows_.to(at::kCPU);
  result.selected_rows.assign(selected.const_data_ptr<std::int64_t>(),
                              selected.const_data_ptr<std::int64_t>() + selected.numel());
  result.eligible_rows.assign(layers, 0);
  for (std::size_t layer = 0; layer < layers; ++layer) {
    const auto& sinks = result.visual_sinks[layer];
    if (sinks.empty() || !decoder_->may_change(static_cast<std::int64_t>(layer), var)) continue;
    result.eligible_rows[layer] =
        decoder_->config().num_heads * text_rows_from(std::max(turn_begin_, sinks.front()));
  }
  return result;
}

}  // namespace libvar
