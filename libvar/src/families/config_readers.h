#pragma once

#include <cstdint>
#include <string>

#include "families/family.h"
#include "families/json_fields.h"

namespace libvar {

inline constexpr std::int64_t kMaxWidth = std::int64_t{1} << 20;
inline constexpr std::int64_t kMaxLayers = 1024;
inline constexpr std::int64_t kMaxPositions = std::int64_t{1} << 24;

/// The decoder of a config.json.
///
/// Rotary embeddings: default and linear; dynamic, which acts beyond max_position_embeddings only,
/// where the context ends here.
/// @param text      where the decoder's values are
/// @param top       the whole file, whose tie_word_embeddings goes before
/// @param defaults  values of keys that are left out. qkv_bias: what a configuration without
/// attention_bias means. rope_sections, where there are any: positions have three coordinates, and
/// mrope_section must be there.
/// @throws ArchiveError
DecoderConfig read_decoder(const JsonFields& text, const JsonFields& top,
                           const DecoderConfig& defaults);

/// Defaults of transformers' LlamaConfig.
DecoderConfig llama_defaults();

/// @throws ArchiveError  another name than those of the activations that are supported
Activation read_activation(const JsonFields& fields, const std::string& key,
                           const std::string& fallback);

/// Sizes, epsilon and activation of a CLIPVisionConfig or a SiglipVisionConfig, which share
/// transformers' defaults but for those given.
VisionConfig read_vision_transformer(const JsonFields& vision, std::int64_t default_patch_size,
                                     double default_eps, const std::string& default_activation);

/// A layer of transformers' hidden_states as the number of layers to run: index 0 is the input of
/// the first layer, negative ones count from the last.
std::int64_t read_feature_layer(const JsonFields& config, const std::string& key,
                                std::int64_t fallback, std::int64_t num_layers);

/// eos_token_id of generation_config.json, of config.json or of its text_config; else the fallback.
std::vector<std::int64_t> read_stop_tokens(const CheckpointFiles& files, const JsonFields& config,
                                           std::int64_t vocab_size, std::int64_t fallback);

/// dtype or torch_dtype; "" where there is none.
std::string read_dtype(const JsonFields& fields);

/// hidden_size, divided by num_attention_heads or num_heads, of a vision tower: checked.
void check_head_size(const JsonFields& fields, std::int64_t hidden_size, std::int64_t num_heads);

}  // namespace libvar
