#include "text/prompt.h"

#include <c10/util/StringUtil.h>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::string_view kVicunaSystem =
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.";
constexpr std::string_view kEndOfAnswer = "</s>";

/// What stands before "USER: " in a turn.
std::string turn_start(PromptStyle style, const std::optional<std::string>& system,
                       bool first_turn) {
  if (!first_turn) return style == PromptStyle::kVicunaV1 ? std::string(kEndOfAnswer) : "";
  const std::string text = system                            ? *system
                           : style == PromptStyle::kVicunaV1 ? std::string(kVicunaSystem)
                                                             : "";
  return text.empty() ? text : text + " ";
}

}  // namespace

std::string_view to_string(PromptStyle style) {
  return style == PromptStyle::kLlavaHf ? "llava_hf" : "vicuna_v1";
}

PromptStyle parse_prompt_style(std::string_view name) {
  for (PromptStyle style : {PromptStyle::kLlavaHf, PromptStyle::kVicunaV1}) {
    if (name == to_string(style)) return style;
  }
  throw ConfigError(c10::str("prompt style must be llava_hf or vicuna_v1, got '", name, "'"));
}

std::int64_t count_image_placeholders(std::string_view text) {
  std::int64_t count = 0;
  for (std::size_t at = text.find(kImagePlaceholder); at != std::string_view::npos;
       at = text.find(kImagePlaceholder, at + kImagePlaceholder.size())) {
    ++count;
  }
  return count;
}

std::string build_prompt(PromptStyle style, const std::optional<std::string>& system,
                         std::string_view question, std::int64_t num_images, bool first_turn) {
  const std::int64_t placeholders = count_image_placeholders(question);
  if (placeholders != 0 && placeholders != num_images) {
    throw InputError(c10::str("question: expected one ", kImagePlaceholder, " for each of ",
                              num_images, " images or none, got ", placeholders));
  }
  std::string prompt = turn_start(style, system, first_turn) + "USER: ";
  for (std::int64_t i = placeholders; i < num_images; ++i)
    prompt.append(kImagePlaceholder).append("\n");
  return prompt.append(question).append(" ASSISTANT:");
}

}  // namespace libvar
