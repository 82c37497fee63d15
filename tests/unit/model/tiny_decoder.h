#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "decoder/config.h"
#include "libvar/var_params.h"
#include "weights.h"

namespace libvar::testing {

/// Random numbers of this generator only, the same on every machine. @return float32, standard
/// normal times `scale`
at::Tensor random_tensor(at::IntArrayRef sizes, std::uint64_t seed, double scale = 1.0);

/// A decoder with weights of unit gain and embeddings for a prompt in which some tokens carry a
/// massive value in a sink dimension.
struct TinyDecoder {
  DecoderConfig config;
  std::vector<std::int64_t> sink_dims;
  TensorMap tensors;
};

struct TinyDecoderOptions {
  std::int64_t heads = 4, kv_heads = 4, head_dim = 24;
  bool biases = false;
  bool tied = false;
};

TinyDecoder make_tiny_decoder(const TinyDecoderOptions& options = {});

/// A prompt as embeddings, with its images.
struct TinyPrompt {
  at::Tensor embeddings;  ///< [1, N, D] float32
  std::vector<std::pair<std::int64_t, std::int64_t>> visual_spans;
};

/// BOS, text, then images of `image_rows` tokens with text between and behind them. BOS and the
/// second token of each image are sinks.
TinyPrompt make_tiny_prompt(const TinyDecoder& decoder, int num_images, std::int64_t image_rows = 9,
                            std::int64_t text_rows = 5);

/// The whole sequence at once in float64, from the equations: eager attention, probabilities of
/// every row, and the redistribution on them. Knows no cache and shares no code with the library.
struct EagerResult {
  at::Tensor logits;                        ///< [N, V] float64
  at::Tensor phi;                           ///< [layers, N] float64
  std::vector<std::int64_t> selected_rows;  ///< per layer
  std::vector<std::int64_t> eligible_rows;  ///< per layer
};

/// @param var        first_layer filled in
/// @param num_prompt rows of `embeddings` that are prompt; those behind are generated
EagerResult run_eager(const TinyDecoder& decoder, const at::Tensor& embeddings,
                      const std::vector<std::pair<std::int64_t, std::int64_t>>& visual_spans,
                      const VarParams& var, std::int64_t num_prompt);

}  // namespace libvar::testing
