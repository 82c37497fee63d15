#pragma once

#include <nlohmann/json_fwd.hpp>

#include "libvar/request.h"
#include "libvar/var_params.h"

namespace var_command {

/// What `ask --json` prints: answer, tokens, prompt_tokens, visual_spans, var, timing,
/// finish_reason.
nlohmann::ordered_json answer_json(const libvar::Answer& answer);

/// enabled, tau (the text "inf" where it is infinite), rho, p, min_visual_mass, first_layer.
nlohmann::ordered_json params_json(const libvar::VarParams& params);

/// What else than text and pictures a prompt depends on: system, prompt_style, image_mode,
/// max_tiles, min_pixels, max_pixels, resize_order, exif_rotation; null where nothing is set.
nlohmann::ordered_json prompt_json(const libvar::Request& request);

}  // namespace var_command
