#include "answer_json.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "numbers.h"

namespace var_command {

using nlohmann::ordered_json;

ordered_json params_json(const libvar::VarParams& params) {
  ordered_json out = {
      {"enabled", params.enabled},
      {"tau", std::isinf(params.tau) ? ordered_json("inf") : ordered_json(decimal(params.tau))},
      {"rho", decimal(params.rho)},
      {"p", decimal(params.p)},
      {"min_visual_mass", decimal(params.min_visual_mass)}};
  if (params.first_layer) out["first_layer"] = *params.first_layer;
  return out;
}

ordered_json prompt_json(const libvar::Request& request) {
  const auto or_null = [](const auto& value) {
    return value ? ordered_json(*value) : ordered_json(nullptr);
  };
  return {{"system", or_null(request.system)},         {"prompt_style", request.prompt_style},
          {"image_mode", request.image_mode},          {"max_tiles", or_null(request.max_tiles)},
          {"min_pixels", or_null(request.min_pixels)}, {"max_pixels", or_null(request.max_pixels)},
          {"resize_order", request.resize_order},      {"exif_rotation", request.exif_rotation}};
}

ordered_json answer_json(const libvar::Answer& answer) {
  ordered_json var = params_json(answer.var.params);
  var["visual_sinks"] = answer.var.visual_sinks;
  var["selected_rows"] = answer.var.selected_rows;
  const libvar::Timing& timing = answer.timing;
  return {{"answer", answer.text},
          {"tokens", answer.tokens},
          {"prompt_tokens", answer.prompt_tokens},
          {"visual_spans", answer.visual_spans},
          {"var", std::move(var)},
          {"timing",
           {{"load_ms", timing.load_ms},
            {"vision_ms", timing.vision_ms},
            {"prefill_ms", timing.prefill_ms},
            {"decode_ms", timing.decode_ms},
            {"decode_tokens", timing.decode_tokens},
            {"tokens_per_second", timing.tokens_per_second},
            {"peak_memory_bytes", timing.peak_memory_bytes}}},
          {"finish_reason", to_string(answer.finish_reason)}};
}

}  // namespace var_command
