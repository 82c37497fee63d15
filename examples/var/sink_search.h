#pragma once

#include <string>

#include "flags.h"
#include "libvar/analysis.h"

namespace var_command {

/// Says that a model has no sink dimensions, what follows (", so ..." or nothing) and how to find
/// them.
std::string no_sink_dimensions(const std::string& model_path, const std::string& consequence = "");

/// Finds them with the pictures and settings of `prompt` and a bar; Ctrl-C ends it.
libvar::SinkDiscovery search_sink_dimensions(const libvar::Model& model, const PromptFlags& prompt);

}  // namespace var_command
