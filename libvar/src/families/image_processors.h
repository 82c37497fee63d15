#pragma once

#include <optional>
#include <string>

#include "families/family.h"
#include "families/json_fields.h"

namespace libvar {

// Settings of image processors as preprocessor_config.json spells them, published or of
// transformers 5. Every function throws ArchiveError for a step that is not supported and for a
// picture of another size than the tower's.

/// The JSON of the image processor, and what messages call it.
struct ProcessorJson {
  nlohmann::json json;
  std::string where;

  JsonFields fields() const { return {json, where}; }
};

/// preprocessor_config.json, beside config.json or the vision tower's, or where transformers 5
/// keeps the same; none: there is none.
std::optional<ProcessorJson> find_processor(const CheckpointFiles& files);

/// @param published  where the family publishes it
/// @throws ArchiveError  there is none
ProcessorJson require_processor(const CheckpointFiles& files,
                                const std::string& published = "preprocessor_config.json");

/// A CLIPImageProcessor. @param image_size  pixels that the vision tower reads
ImageProcessorConfig read_clip_processor(const JsonFields& fields, std::int64_t image_size);

/// The processor of openai/clip-vit-large-patch14-336.
ImageProcessorConfig clip_336_processor();

/// A processor that resizes straight to image_size x image_size (SiglipImageProcessor).
ImageProcessorConfig read_resize_processor(const JsonFields& fields, std::int64_t image_size);

/// A processor that cuts into tiles of image_size (GotOcr2ImageProcessor); without crop_to_patches
/// it makes one tile. Of a CLIPImageProcessor beside a configuration that says how to cut, only the
/// normalisation is read.
ImageProcessorConfig read_tile_processor(const JsonFields& fields, std::int64_t image_size);

/// A Qwen2VLImageProcessor.
/// @param vision  patch_size, merge_size and temporal_patch_size that it must agree with
ImageProcessorConfig read_dynamic_processor(const JsonFields& fields, const VisionConfig& vision);

}  // namespace libvar
