#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "decoder/decoder.h"

namespace libvar {

/// Stands for a visual token where the vocabulary has no image token.
inline constexpr std::int64_t kNoImageToken = -200;

/// A prompt as the decoder reads it.
struct Sequence {
  std::vector<std::int64_t> ids;  ///< one image token id per visual token
  std::vector<std::pair<std::int64_t, std::int64_t>>
      visual_spans;  ///< [begin, end) in ids, one for each image
};

/// Repeats each image token once for every visual token of an image.
Sequence expand_image_tokens(const std::vector<std::int64_t>& ids, std::int64_t image_token,
                             std::int64_t visual_tokens_per_image);

/// Embeddings of a sequence: those of its tokens, and the image features in place of the image
/// tokens.
///
/// @param features  [images, tokens, D], or undefined without images; cast to the dtype of the
/// embeddings
/// @return          [1, N, D], fresh storage
/// @throws InputError  features and spans differ in number
at::Tensor embed_sequence(const Decoder& decoder, const Sequence& sequence,
                          const at::Tensor& features);

}  // namespace libvar
