#include "decoder/decoder.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <tuple>

#include "libvar/ops.h"

namespace libvar {

Decoder::Layer::Layer(const DecoderConfig& config, std::int64_t index, const WeightReader& weights)
    : input_norm(weights.read("input_layernorm.weight", {config.hidden_size})),
      post_attention_norm(weights.read("post_attention_layernorm.weight", {config.hidden_size})),
      attention(config, index, weights.scope("self_attn.")),
      gate_up(weights.scope("mlp."),
              {{"gate_proj", config.intermediate_size}, {"up_proj", config.intermediate_size}},
              config.hidden_size, config.mlp_bias),
      down(Linear::read(weights, "mlp.down_proj", config.intermediate_size, config.hidden_size,
                        config.mlp_bias)) {}

Decoder::Decoder(const DecoderConfig& config, const std::vector<std::int64_t>& sink_dims,
                 const WeightReader& weights)
    : config_(config),
      target_(weights.target()),
      sink_dims_(at::tensor(sink_dims, at::kLong).to(target_.device)),
      no_sink_dims_(at::empty({0}, at::TensorOptions().dtype(at::kLong).device(target_.device))),
      embedding_(
          weights.read("model.embed_tokens.weight", {config.vocab_size, config.hidden_size})),
      final_norm_(weights.read("model.norm.weight", {config.hidden_size})),
      rotary_(config, target_) {
  if (config.tie_word_embeddings) {
    head_.weight = embedding_;
  } else {
    head_ = Linear::read(weights, "lm_head", config.hidden_size, config.vocab_size, false);
  }
  layers_.reserve(static_cast<std::size_t>(config.num_layers));
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    layers_.emplace_back(config, i, weights.scope(c10::str("model.layers.", i, ".")));
  }
}

Decoder Decoder::with_sink_dims(const std::vector<std::int64_t>& sink_dims) const {
  Decoder other = *this;
  other.sink_dims_ = at::tensor(sink_dims, at::kLong).to(target_.device);
  return other;
}

at::Tensor Decoder::embed(const at::Tensor& ids) const {
  return at::embedding(embedding_, ids.to(target_.device));
}

at::Tensor Decoder::logits(const at::Tensor& normed) const {
  return head_(normed);
}

bool Decoder::may_change(std::int64_t layer, const VarParams& var) const {
  return var.enabled && var.head_rule != HeadRule::kNone && sink_dims_.numel() > 0 &&
         layer >= var.first_layer.value_or(0) &&
         (layer + 1 < config_.num_layers || var.include_last_layer);
}

at::Tensor Decoder::stored_sink_scores(std::int64_t layer, const at::Tensor& residual,
                                       const at::Tensor& phi, const DecoderPass& pass,
                                       std::int64_t past) const {
  if (pass.generated && !pass.var.generated_sinks) return at::zeros_like(phi);
  const bool own_epsilon = pass.var.phi_epsilon && sink_dims_.numel() > 0 &&
                           *pass.var.phi_epsilon != static_cast<float>(config_.rms_norm_eps);
  at::Tensor stored = own_epsilon ? sink_scores(residual, sink_dims_, *pass.var.phi_epsilon) : phi;
  if (pass.hooks != nullptr && pass.hooks->sink_scores)
    stored = pass.hooks->sink_scores(layer, past, stored);
  return stored;
}

at::Tensor Decoder::operator()(at::Tensor hidden, const DecoderPass& pass, KvCache& cache) const {
  const SequenceRows* sequences = pass.sequences;
  const std::int64_t batch = hidden.size(0), rows = hidden.size(1), past = cache.length();
  AttentionPass attention_pass;
  attention_pass.sequences = sequences;
  attention_pass.past = past;
  attention_pass.plain_rows =
      sequences != nullptr ? 0 : std::clamp<std::int64_t>(pass.plain_end - past, 0, rows);
  at::Tensor positions = pass.positions;
  if (!positions.defined()) {
    positions =
        at::arange(past, past + rows, at::TensorOptions().dtype(at::kLong).device(target_.device))
            .expand({config_.position_axes(), rows});
  }
  attention_pass.angles = rotary_.angles(positions);
  if (sequences != nullptr) {
    for (at::Tensor* table : {&attention_pass.angles.cos, &attention_pass.angles.sin})
      *table = table->transpose(0, 1);  // [B, 1, Dh]
    attention_pass.places = sequences->places;
  } else {
    attention_pass.places =
        at::full({batch}, past, at::TensorOptions().dtype(at::kLong).device(target_.device));
  }
  if (pass.hooks != nullptr) {
    if (pass.hooks->attention) attention_pass.observer = &pass.hooks->attention;
    attention_pass.drops_source_mass = pass.hooks->drops_source_mass;
  }

  RedistributionRule off = pass.var.rule();
  off.head_rule = HeadRule::kNone;
  const std::int64_t changeable_rows = rows - attention_pass.plain_rows;
  at::Tensor selected;  // [layers, B, H, changeable rows]
  if (pass.selected_rows.defined() && pass.var.enabled && changeable_rows > 0) {
    selected = at::zeros({config_.num_layers, batch, config_.num_heads, changeable_rows},
                         at::TensorOptions().dtype(at::kBool).device(target_.device));
  }

  at::Tensor delta;  // what the layer before adds to the residual stream
  const auto norm = [&](const at::Tensor& weight, const at::Tensor& dims) {
    return delta.defined()
               ? add_rms_norm_sink_scores(hidden, delta, weight, dims, config_.rms_norm_eps)
               : rms_norm_sink_scores(hidden, weight, dims, config_.rms_norm_eps);
  };
  for (std::int64_t i = 0; i < config_.num_layers; ++i) {
    const Layer& layer = layers_[static_cast<std::size_t>(i)];
    const bool changes = sequences != nullptr
                             ? sequences->changes_layers[static_cast<std::size_t>(i)]
                             : may_change(i, pass.var);
    auto [normed, phi] = norm(layer.input_norm, sink_dims_);  // phi of the layer's input
    phi = stored_sink_scores(i, hidden, phi, pass, past);
    if (pass.hooks != nullptr && pass.hooks->layer) pass.hooks->layer(i, hidden);
    delta = layer.attention(normed, phi, attention_pass, changes ? pass.var.rule() : off,
                            changes && selected.defined() ? selected.select(0, i) : at::Tensor(),
                            cache);
    std::tie(normed, phi) = norm(layer.post_attention_norm, no_sink_dims_);
    delta = layer.down(layer.gate_up.swiglu(normed));
  }
  if (sequences != nullptr) {
    if (selected.defined())
      pass.selected_rows.add_(selected.sum({2, 3}).mul_(sequences->may_change));
  } else {
    if (selected.defined()) pass.selected_rows.add_(selected.sum({1, 2, 3}));
    cache.advance(rows);
  }

  const std::int64_t first = rows - pass.last_rows;
  hidden = hidden.narrow(1, first, pass.last_rows);
  delta = delta.narrow(1, first, pass.last_rows);
  return std::get<0>(norm(final_norm_, no_sink_dims_));
}

}  // namespace libvar
