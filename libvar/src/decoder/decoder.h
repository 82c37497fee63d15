#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "decoder/attention.h"
#include "decoder/config.h"
#include "decoder/kv_cache.h"
#include "decoder/rotary.h"
#include "libvar/var_params.h"
#include "weights.h"

namespace libvar {

/// Gets the residual stream [B, Q, D] at the input of each layer, before its norm. The layer
/// changes it in place afterwards: what is to be kept must be copied.
using LayerObserver = std::function<void(std::int64_t layer, const at::Tensor& hidden)>;

/// Gives what is stored in place of the sink scores [B, Q] of the rows from position `past` on.
using SinkScoreFilter =
    std::function<at::Tensor(std::int64_t layer, std::int64_t past, const at::Tensor& phi)>;

/// What analyses look at and change in a pass; nothing by default.
struct PassHooks {
  LayerObserver layer;             ///< called for every layer, or empty
  AttentionObserver attention;     ///< likewise, once its keys and values are in the cache
  SinkScoreFilter sink_scores;     ///< or empty
  bool drops_source_mass = false;  ///< see AttentionPass
};

/// How one pass over some positions is to be computed.
struct DecoderPass {
  /// Or null: the rows are the positions behind the cache's last, in every sequence. With it
  /// `positions` must be given, one for each sequence ([position_axes, B]); of `var` only what
  /// SequenceRows::params do not hold is read; the cache's length stays; hooks are not called.
  const SequenceRows* sequences = nullptr;
  /// Positions below it can't be changed by any setting: the end of the first image, or past the
  /// end without images.
  std::int64_t plain_end = 0;
  /// [position_axes, Q] int64 on the device; undefined: those that follow the cache's, counted from
  /// 0
  at::Tensor positions;
  VarParams var;               ///< first_layer filled in
  bool generated = false;      ///< the rows are generated tokens
  std::int64_t last_rows = 1;  ///< so many rows at the end are wanted
  at::Tensor selected_rows;    ///< [layers] ([layers, B] with sequences) int64 on the device, or
                               ///< undefined; gets the changed (head, row) pairs added
  const PassHooks* hooks = nullptr;  ///< or null
};

/// A Llama-like decoder: embeddings, layers, final norm and head.
///
/// Source: Llama 2 as transformers runs it (pre-norm, rotary positions, SwiGLU); redistribution as
/// in arXiv:2503.03321. Immutable; all state is in the KvCache.
class Decoder {
 public:
  /// @param weights    names relative to the language model ("model.layers.0...", "lm_head.weight")
  /// @param sink_dims  sink dimensions of these weights; empty: phi is 0
  Decoder(const DecoderConfig& config, const std::vector<std::int64_t>& sink_dims,
          const WeightReader& weights);

  /// The same weights, shared, with other sink dimensions.
  Decoder with_sink_dims(const std::vector<std::int64_t>& sink_dims) const;

  /// Embeddings of token ids, fresh storage. [N] int64 -> [N, D]
  at::Tensor embed(const at::Tensor& ids) const;

  /// Runs the positions that follow those in the cache.
  ///
  /// @param hidden  [B, Q, D] embeddings, used up: the residual stream is kept in it
  /// @param cache   has room for Q more positions and their visual mask set; grows by Q
  /// @return        [B, last_rows, D] behind the final norm
  at::Tensor operator()(at::Tensor hidden, const DecoderPass& pass, KvCache& cache) const;

  /// [..., D] -> [..., vocabulary]
  at::Tensor logits(const at::Tensor& normed) const;

  /// True where `var` lets this layer be changed: it is on, and the layer is neither too early nor
  /// the last.
  bool may_change(std::int64_t layer, const VarParams& var) const;

  const DecoderConfig& config() const { return config_; }

  const ComputeTarget& target() const { return target_; }

 private:
  struct Layer {
    Layer(const DecoderConfig& config, std::int64_t index, const WeightReader& weights);

    at::Tensor input_norm, post_attention_norm;  // [D]
    SelfAttention attention;
    ProjectionGroup gate_up;
    Linear down;
  };

  /// What the cache keeps as the sink scores of a layer's rows.
  at::Tensor stored_sink_scores(std::int64_t layer, const at::Tensor& residual,
                                const at::Tensor& phi, const DecoderPass& pass,
                                std::int64_t past) const;

  DecoderConfig config_;
  ComputeTarget target_;
  at::Tensor sink_dims_;     // [S] int64
  at::Tensor no_sink_dims_;  // [0] int64
  at::Tensor embedding_;     // [V, D]
  at::Tensor final_norm_;    // [D]
  Linear head_;
  RotaryEmbedding rotary_;
  std::vector<Layer> layers_;
};

}  // namespace libvar
