#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "decoder/config.h"

namespace libvar {

/// Most sink dimensions of a model, as the ops take them.
inline constexpr std::size_t kMaxSinkDims = 8;

/// @throws ConfigError  not 1 to kMaxSinkDims different dimensions in [0, hidden_size)
void check_sink_dimensions(const std::vector<std::int64_t>& dims, std::int64_t hidden_size);

/// Sink dimensions of a language model and where they are known from.
struct SinkDimensions {
  std::vector<std::int64_t> dims;
  std::string source;
};

/// Those of a published language model, recognised by its sizes. A fine-tuned model may have moved
/// them: a default.
std::optional<SinkDimensions> known_sink_dimensions(const DecoderConfig& decoder);

}  // namespace libvar
