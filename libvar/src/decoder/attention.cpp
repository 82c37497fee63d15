#include "decoder/attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <vector>

#include "libvar/ops.h"
#include "plain_attention.h"

namespace libvar {
namespace {

/// By how much the targets of each changed row grew, undone: all but what the sources lost.
/// @return  [B, H, Q] float32, 1 where nothing was changed
at::Tensor kept_share(const AttentionTrace& trace, const RedistributionRule& rule) {
  const auto mass_of = [&](ClassSet classes) {
    at::Tensor sum = at::zeros(trace.selected.sizes(), trace.class_mass.options());
    for (int c = 0; c < kNumTokenClasses; ++c) {
      if ((classes >> c & 1) != 0) sum = sum + trace.class_mass.select(-1, c);
    }
    return sum;
  };
  const at::Tensor sources = mass_of(rule.sources), targets = mass_of(rule.targets);
  return at::where(trace.selected, targets / (targets + sources * rule.p), at::ones_like(targets));
}

}  // namespace

SelfAttention::SelfAttention(const DecoderConfig& config, std::int64_t layer,
                             const WeightReader& weights)
    : config_(config),
      layer_(layer),
      scale_(1.0 / std::sqrt(static_cast<double>(config.head_dim))),
      query_key_value_(weights,
                       {{"q_proj", config.num_heads * config.head_dim},
                        {"k_proj", config.num_kv_heads * config.head_dim},
                        {"v_proj", config.num_kv_heads * config.head_dim}},
                       config.hidden_size, config.qkv_bias),
      out_(Linear::read(weights, "o_proj", config.num_heads * config.head_dim, config.hidden_size,
                        config.output_bias)) {}

at::Tensor SelfAttention::attend_sequences(const at::Tensor& query, const SequenceRows& sequences,
                                           const RedistributionRule& rule,
                                           const at::Tensor& selected, const KvCache& cache) const {
  AttentionInputs inputs;
  inputs.query = query;
  inputs.key = cache.keys(layer_, sequences.longest);
  inputs.value = cache.values(layer_, sequences.longest);
  inputs.sink_scores = cache.sink_scores(layer_, sequences.longest);
  inputs.visual_mask = cache.visual_mask(sequences.longest);
  inputs.kv_lengths = sequences.lengths;
  inputs.scale = scale_;
  AttentionTrace trace;
  trace.selected = selected;
  return attention(inputs, rule, sequences.params.select(0, layer_),
                   selected.defined() ? &trace : nullptr);
}

at::Tensor SelfAttention::attend_redistributed(const at::Tensor& query, std::int64_t length,
                                               const RedistributionRule& rule,
                                               const at::Tensor& selected, bool drops_source_mass,
                                               const KvCache& cache) const {
  AttentionInputs inputs;
  inputs.query = query;
  inputs.key = cache.keys(layer_, length);
  inputs.value = cache.values(layer_, length);
  inputs.sink_scores = cache.sink_scores(layer_, length);
  inputs.visual_mask = cache.visual_mask(length);
  inputs.scale = scale_;
  AttentionTrace trace;
  trace.selected = selected;
  if (!drops_source_mass || rule.head_rule == HeadRule::kNone)
    return attention(inputs, rule, std::nullopt, selected.defined() ? &trace : nullptr);
  const at::Tensor like = query.select(-1, 0);  // [B, H, Q]
  if (!selected.defined())
    trace.selected = at::zeros(like.sizes(), like.options().dtype(at::kBool));
  trace.class_mass = at::zeros({like.size(0), like.size(1), like.size(2), kNumTokenClasses},
                               like.options().dtype(at::kFloat));
  const at::Tensor out = attention(inputs, rule, std::nullopt, &trace);
  return out.mul(kept_share(trace, rule).unsqueeze(-1)).to(query.scalar_type());
}

at::Tensor SelfAttention::attend_plain(const at::Tensor& query, const AttentionPass& pass,
                                       const KvCache& cache) const {
  const std::int64_t length = pass.past + query.size(2);
  if (pass.past > 0) {
    RedistributionRule off;
    off.head_rule = HeadRule::kNone;
    return attend_redistributed(query, length, off, at::Tensor(), false, cache);
  }
  return plain_attention(query, cache.keys(layer_, length), cache.values(layer_, length),
                         /*is_causal=*/true, scale_);
}

at::Tensor SelfAttention::operator()(const at::Tensor& normed, const at::Tensor& phi,
                                     const AttentionPass& pass, const RedistributionRule& rule,
                                     const at::Tensor& selected, KvCache& cache) const {
  const std::int64_t batch = normed.size(0), rows = normed.size(1);
  const std::vector<at::Tensor> parts = query_key_value_(normed);
  const auto heads = [&](std::size_t part) {
    return parts[part].unflatten(-1, {-1, config_.head_dim}).transpose(1, 2);
  };
  const at::Tensor query = cache.store(
      layer_, {heads(0), heads(1), heads(2), phi, pass.angles.cos, pass.angles.sin}, pass.places);
  const auto project = [&](const at::Tensor& all) {
    return out_(all.reshape({batch, rows, config_.num_heads * config_.head_dim}));
  };
  if (pass.sequences != nullptr) {
    return project(attend_sequences(query, *pass.sequences, rule, selected, cache).transpose(1, 2));
  }
  if (pass.observer != nullptr) {
    (*pass.observer)({layer_, pass.past, query, cache, scale_, rule, out_.weight});
  }

  const std::int64_t changed_rows = rows - pass.plain_rows;
  const auto plain = [&](std::int64_t count) {  // of the first rows: [B, count, H, Dh]
    return attend_plain(query.narrow(2, 0, count), pass, cache).transpose(1, 2);
  };
  const auto changed = [&] {
    return attend_redistributed(query.narrow(2, pass.plain_rows, changed_rows), pass.past + rows,
                                rule, selected, pass.drops_source_mass, cache)
        .transpose(1, 2);
  };
  if (changed_rows == 0) return project(plain(rows));
  if (pass.plain_rows == 0) return project(changed());
  // A GPU computes a few rows twice in less time than it copies all of them.
  constexpr std::int64_t kMostRowsTwice = 8;  // one row in so many
  if (query.is_cuda() && pass.past == 0 && changed_rows * kMostRowsTwice <= rows) {
    const at::Tensor all = plain(rows);
    all.narrow(1, pass.plain_rows, changed_rows).copy_(changed());
    return project(all);
  }
  return project(at::cat({plain(pass.plain_rows), changed()}, 1));
}

}  // namespace libvar
