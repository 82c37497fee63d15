#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decoder/config.h"

namespace libvar {

/// Sink dimensions of a language model and where they are known from.
struct SinkDimensions {
  std::vector<std::int64_t> dims;
  std::string source;
};

/// Those of a published language model, recognised by its sizes. A fine-tuned model may have moved
/// them: a default.
std::optional<SinkDimensions> known_sink_dimensions(const DecoderConfig& decoder);

}  // namespace libvar
