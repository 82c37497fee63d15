#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "image/config.h"

namespace libvar {

/// The settings of a CLIPImageProcessor as preprocessor_config.json spells them, published or of
/// transformers 5.
///
/// @param image_size  pixels that the vision tower reads
/// @throws ArchiveError  a step that is not supported, or a picture of another size than the
/// tower's
ImageProcessorConfig read_clip_processor(const nlohmann::json& json, const std::string& where,
                                         std::int64_t image_size);

/// Those of openai/clip-vit-large-patch14-336.
ImageProcessorConfig clip_336_processor();

}  // namespace libvar
