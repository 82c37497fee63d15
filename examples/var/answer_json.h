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

}  // namespace var_command
