#pragma once

#include <vector>

#include "image/config.h"
#include "image/image.h"
#include "image/sizes.h"
#include "libvar/token_box.h"
#include "vision/config.h"

namespace libvar {

/// Where the visual tokens of an image lie in the picture, in the order of the tokens.
///
/// A crop leaves a part of the picture out, and padding shows some tokens what is not in it: their
/// boxes reach over the picture's borders. Every tile has its boxes in its part of the picture, the
/// thumbnail in all of it.
/// @param picture    the size before processing, after EXIF rotation
/// @param processed  what process_image made of it
std::vector<TokenBox> token_boxes(const PictureSize& picture, const ProcessedImage& processed,
                                  const ImageProcessorConfig& processor,
                                  const VisionConfig& vision);

}  // namespace libvar
