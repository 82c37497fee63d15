#include "decoder/attention.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <cmath>
#include <vector>

#include "libvar/ops.h"

namespace libvar {

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

at::Tensor SelfAttention::attend_redistributed(const at::Tensor& query, std::int64_t length,
                                               const RedistributionRule& rule,
                                               const at::Tensor& selected,
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
  return attention(inputs, rule, std::nullopt, selected.defined() ? &trace : nullptr);
}

at::Tensor SelfAttention::attend_plain(const at::Tensor& query, const AttentionPass& pass,
                                       const KvCache& cache) const {
  const std::int64_t length = pass.past + query.size(2);
  if (pass.past > 0) {
    RedistributionRule off;
    off.head_rule = HeadRule::kNone;
    return attend_redistributed(query, length, off, at::Tensor(), cache);
  }
  return at::scaled_dot_product_attention(query, cache.keys(layer_, length),
                                          cache.values(layer_, length), {}, 0.0,
                                          /*is_causal=*/true, scale_,
                                          /*enable_gqa=*/config_.num_heads != config_.num_kv_heads);
}

at::Tensor SelfAttention::operator()(const at::Tensor& normed, const AttentionPass& pass,
                                     const RedistributionRule& rule, const at::Tensor& selected,
                                     KvCache& cache) const {
  const std::int64_t batch = normed.size(0), rows = normed.size(1);
  const std::vector<at::Tensor> parts = query_key_value_(normed);
  const auto heads = [&](std::size_t part) {
    return parts[part].unflatten(-1, {-1, config_.head_dim}).transpose(1, 2);
  };
  const at::Tensor query = rotate(heads(0), pass.angles);
  cache.append(layer_, rotate(heads(1), pass.angles), heads(2));

  std::vector<at::Tensor> mixed;  // [B, rows of it, H, Dh]
  if (pass.plain_rows > 0) {
    mixed.push_back(attend_plain(query.narrow(2, 0, pass.plain_rows), pass, cache).transpose(1, 2));
  }
  if (pass.plain_rows < rows) {
    const std::int64_t changed_rows = rows - pass.plain_rows;
    mixed.push_back(attend_redistributed(query.narrow(2, pass.plain_rows, changed_rows),
                                         pass.past + rows, rule, selected, cache)
                        .transpose(1, 2));
  }
  const at::Tensor all = mixed.size() == 1 ? mixed.front() : at::cat(mixed, 1);
  return out_(all.reshape({batch, rows, config_.num_heads * config_.head_dim}));
}

}  // namespace libvar
