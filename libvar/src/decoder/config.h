#pragma once

#include <cstdint>
#include <vector>

namespace libvar {

/// Numbers and flags of a Llama-like decoder. Families differ by these values only.
struct DecoderConfig {
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t num_layers = 0;
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_positions = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  double rope_factor = 1.0;  ///< positions are divided by it
  /// Pairs of channels that turn with the first, second and third coordinate of a position; empty:
  /// positions have one coordinate.
  std::vector<std::int64_t> rope_sections = {};
  bool qkv_bias = false;
  bool output_bias = false;  ///< of the attention's output projection
  bool mlp_bias = false;
  bool tie_word_embeddings = false;

  /// Coordinates of a position: 1, or 3 (time, row, column).
  std::int64_t position_axes() const { return rope_sections.empty() ? 1 : 3; }
};

}  // namespace libvar
