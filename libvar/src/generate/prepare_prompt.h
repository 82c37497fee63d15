#pragma once

#include <vector>

#include "decoder/sequence.h"
#include "image/image.h"
#include "image/sizes.h"
#include "libvar/request.h"
#include "loaded_model.h"

namespace libvar {

/// What a request's text and images become before the model's weights are needed.
struct PreparedPrompt {
  Sequence sequence;
  std::vector<ProcessedImage> images;
  std::vector<PictureSize> picture_sizes;  ///< of the images, before processing
  ImageProcessorConfig processor;          ///< as the request has it
};

/// The prompt of a request in the model's vocabulary and its images in the model's sizes.
///
/// @param first_turn  false: the prompt goes behind an earlier answer, as build_prompt says
/// @throws ConfigError  image settings that this model has not
/// @throws InputError   an empty prompt, an image that can't be read, places and images that differ
/// in number
PreparedPrompt prepare_prompt(const LoadedModel& model, const Request& request, bool first_turn);

}  // namespace libvar
