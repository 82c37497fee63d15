#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace libvar {

enum class PromptStyle {
  kLlavaHf,
  kVicunaV1,
  kVicunaV1NoSystem,
  kLlama3,
  kQwen2Vl,
  kInternLm2Chat
};

/// "llava_hf", "vicuna_v1", "vicuna_v1_nosys", "llama_3", "qwen2_vl", "internlm2_chat".
std::string_view to_string(PromptStyle style);

/// @throws ConfigError  another name
PromptStyle parse_prompt_style(std::string_view name);

/// Text that marks the place of an image in a prompt.
inline constexpr std::string_view kImagePlaceholder = "<image>";

/// How often kImagePlaceholder stands in `text`.
std::int64_t count_image_placeholders(std::string_view text);

/// The text of one turn, with a placeholder for each image between what the style puts around one
/// ("<|vision_start|><image><|vision_end|>" for qwen2_vl).
///
/// A question that holds no placeholder gets `num_images` of them before its text, each with the
/// style's separator behind it (a newline; qwen2_vl has none).
/// @param system      none: the style's own system text (llava_hf and vicuna_v1_nosys have none);
/// "" leaves the system turn out
/// @param first_turn  false: the turn follows the tokens of an answer, without the stop token, in a
/// conversation; the text starts with what the published template puts there ("</s>" for vicuna_v1;
/// llava_hf has a space, which the tokenizer gives every stretch of text itself) and `system` is
/// not used
/// @throws InputError  placeholders and images differ in number
std::string build_prompt(PromptStyle style, const std::optional<std::string>& system,
                         std::string_view question, std::int64_t num_images,
                         bool first_turn = true);

}  // namespace libvar
