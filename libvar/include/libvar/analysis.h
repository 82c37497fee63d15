#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"

namespace libvar {

/// A dimension of the hidden state that is massive in the first token.
struct FoundSinkDimension {
  std::int64_t dimension = 0;
  std::vector<std::int64_t> layers;  ///< where it is massive, of all layers, ascending
  double times_median = 0;  ///< its magnitude over the layer's median; mean over the prompts and
                            ///< the middle layers
};

/// What discover_sink_dimensions() measured.
struct SinkDiscovery {
  std::vector<FoundSinkDimension> dimensions;  ///< the largest first; empty: none found
  std::string source;                          ///< how they were found, in one line
  std::int64_t text_prompts = 0, image_prompts = 0;
  std::pair<std::int64_t, std::int64_t> middle_layers;  ///< [begin, end)
  float tau = 0;
  /// Per layer, with the dimensions found: phi of the first token, mean over the prompts; and the
  /// share of the visual tokens of all images with phi >= tau. Empty where nothing was found, or
  /// without images.
  std::vector<double> first_token_phi, visual_sink_share;

  std::vector<std::int64_t> dims() const;
};

/// Finds the sink dimensions of a model's language model: channels of the hidden state that carry
/// massive activations in the first token (BOS, or whatever a model without one starts with).
///
/// Built-in text prompts are run, and one prompt for each image of `request`, all without VAR. In a
/// prompt, a dimension d is massive in layer l when abs(x[d]) of the first token is finite, is at
/// least 1000 times the median magnitude of the hidden states of all tokens entering the layer, and
/// is among the token's 8 largest. It is massive in layer l when that is so in more than half of
/// the prompts, and it is a sink dimension when it is massive in more than half of the middle
/// layers: those from num_layers / 4, rounded down, to before 3 * num_layers / 4, rounded up. At
/// most 8 are given, those with the largest times_median.
///
/// @param request      its images, system text, prompt style and image settings are used; nothing
/// else of it
/// @param tau          threshold of the share of visual tokens
/// @param on_progress  gets the prompts done and in all before each prompt; may throw to stop
/// @throws ConfigError, InputError  as Session::ask
/// @throws ResourceError            out of memory
SinkDiscovery discover_sink_dimensions(const Model& model, const Request& request = {},
                                       float tau = VarParams().tau,
                                       const ProgressCallback& on_progress = {});

}  // namespace libvar
