#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "decoder/decoder.h"
#include "visual_size.h"

namespace libvar {

/// Stands for a visual token where the vocabulary has no image token.
inline constexpr std::int64_t kNoImageToken = -200;

/// A prompt as the decoder reads it.
struct Sequence {
  std::vector<std::int64_t> ids;  ///< one image token id per visual token
  std::vector<std::pair<std::int64_t, std::int64_t>>
      visual_spans;                      ///< [begin, end) in ids, one for each image
  std::vector<VisualSize> visual_sizes;  ///< as visual_spans
};

/// Repeats each image token once for every visual token of its image.
/// @throws InputError  image tokens and images differ in number
Sequence expand_image_tokens(const std::vector<std::int64_t>& ids, std::int64_t image_token,
                             const std::vector<VisualSize>& images);

/// Embeddings of a sequence: those of its tokens, and the image features in place of the image
/// tokens.
///
/// @param features  [visual tokens, D] for each image; cast to the dtype of the embeddings
/// @return          [1, N, D], fresh storage
/// @throws InputError  features and spans differ in number
at::Tensor embed_sequence(const Decoder& decoder, const Sequence& sequence,
                          const std::vector<at::Tensor>& features);

/// Positions with three coordinates (time, row, column), M-RoPE of Qwen2-VL (arXiv:2409.12191):
/// text counts on in all three; an image at position s holds (s, s + row, s + column), and what
/// follows goes on behind its largest coordinate.
///
/// @param begin  position of the first token
/// @return       [3, N] int64 on the CPU
at::Tensor three_axis_positions(const Sequence& sequence, std::int64_t begin);

}  // namespace libvar
