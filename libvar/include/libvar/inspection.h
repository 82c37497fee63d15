#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"
#include "libvar/token_box.h"

namespace libvar {

/// One image of an inspected prompt.
struct InspectedImage {
  std::int64_t width = 0, height = 0;               ///< pixels, after EXIF rotation
  std::pair<std::int64_t, std::int64_t> positions;  ///< [begin, end) of its visual tokens
  std::vector<TokenBox> boxes;                      ///< of each of them
};

/// What an inspection is to keep.
struct InspectOptions {
  /// Layers whose heads are kept one by one, ascending.
  std::vector<std::int64_t> head_layers;
  /// Positions whose hidden states' magnitudes are kept, ascending.
  std::vector<std::int64_t> magnitude_positions;
  bool contributions = false;  ///< fill Inspection::contribution
};

/// What the attention of one question's text rows does; all tensors are float32 on the CPU.
///
/// L layers, H heads, R rows looked at, N positions fed, V visual tokens of all images in order.
struct Inspection {
  Answer answer;
  std::vector<std::int64_t> tokens;  ///< [N] prompt and generated tokens that were fed
  std::vector<std::string> pieces;   ///< [N] the text of each; empty for visual tokens
  std::vector<InspectedImage> images;
  std::vector<std::int64_t> rows;  ///< [R] positions of the text tokens behind the first visual one
  at::Tensor sink_scores;          ///< [L, N] phi
  /// Softmax probabilities of the rows in this run, mean over the heads, and the same after
  /// redistribution (equal where nothing was changed).
  at::Tensor attention, redistributed;  ///< [L, R, N]
  at::Tensor visual_mass;               ///< [L, H, R] m_VN + m_VS, before redistribution
  at::Tensor visual_ratio;  ///< [L, H, R] r = m_VN / (m_VN + m_VS); NaN without visual mass
  at::Tensor selected;      ///< [L, H, R] bool: the row was changed
  std::vector<std::int64_t> head_layers;
  at::Tensor head_attention, head_redistributed;  ///< [head_layers, H, R, N]
  /// Abs of the hidden states that enter each layer. [L, magnitude_positions, D]
  at::Tensor magnitudes;
  /// Norm of alpha_ij * W_O v_j of each visual token j (v_j the value with its bias, W_O the head's
  /// columns of the output projection), before redistribution: mean over the rows. [L, H, V]
  at::Tensor contribution;
};

/// Answers a question as Session::ask does and keeps what the attention of its text rows did.
///
/// Source: arXiv:2503.03321, Section 3 (sink scores, attention of text to visual tokens, norm of
/// the contribution) and Section 4 (visual non-sink ratio). Generation runs in the fused kernel; of
/// the rows looked at the probabilities are computed beside it, one layer at a time, so that memory
/// grows with rows x positions, never with positions x positions.
/// @throws  as Session::ask; InputError without an image; ConfigError for layers and positions that
///          the model or the prompt does not have
Inspection inspect(const std::shared_ptr<const Model>& model, const Request& request,
                   const InspectOptions& options = {});

}  // namespace libvar
