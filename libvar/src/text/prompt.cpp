#include "text/prompt.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <vector>

#include "libvar/error.h"
#include "libvar/request.h"

namespace libvar {
namespace {

/// The texts that a style puts around what a request gives.
struct Template {
  PromptStyle style;
  std::string_view name;
  std::string_view system = {};  ///< of its own
  std::string_view before_system = {}, after_system = {};
  bool ends_empty_system = false;  ///< after_system stands without a system text too
  std::string_view before_later_turn = {};
  std::string_view before_question = {}, after_question = {};
  std::string_view before_image = {}, after_image = {};
  std::string_view image_separator = {};  ///< behind an image that stands before the question
};

constexpr std::string_view kVicunaSystem =
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.";

constexpr std::string_view kVilaLlama3System =
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language.";
/// The multimodal model of 书生, by Shanghai AI Laboratory with SenseTime, called InternVL, a
/// useful and harmless assistant: one full-width comma, one comma and a space, a full-width stop.
constexpr std::string_view kInternVl2System =
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。";

// In the order of PromptStyle.
constexpr std::array<Template, 6> kTemplates{{
    {.style = PromptStyle::kLlavaHf,
     .name = "llava_hf",
     .after_system = " ",
     .before_question = "USER: ",
     .after_question = " ASSISTANT:",
     .image_separator = "\n"},
    {.style = PromptStyle::kVicunaV1,
     .name = "vicuna_v1",
     .system = kVicunaSystem,
     .after_system = " ",
     .before_later_turn = "</s>",
     .before_question = "USER: ",
     .after_question = " ASSISTANT:",
     .image_separator = "\n"},
    {.style = PromptStyle::kVicunaV1NoSystem,
     .name = "vicuna_v1_nosys",
     .after_system = " ",
     .ends_empty_system = true,
     .before_later_turn = "</s>",
     .before_question = "USER: ",
     .after_question = " ASSISTANT:",
     .image_separator = "\n"},
    {.style = PromptStyle::kLlama3,
     .name = "llama_3",
     .system = kVilaLlama3System,
     .before_system = "<|start_header_id|>system<|end_header_id|>\n\n",
     .after_system = "<|eot_id|>",
     .before_later_turn = "<|eot_id|>",
     .before_question = "<|start_header_id|>user<|end_header_id|>\n\n",
     .after_question = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
     .image_separator = "\n"},
    {.style = PromptStyle::kQwen2Vl,
     .name = "qwen2_vl",
     .system = "You are a helpful assistant.",
     .before_system = "<|im_start|>system\n",
     .after_system = "<|im_end|>\n",
     .before_later_turn = "<|im_end|>\n",
     .before_question = "<|im_start|>user\n",
     .after_question = "<|im_end|>\n<|im_start|>assistant\n",
     .before_image = "<|vision_start|>",
     .after_image = "<|vision_end|>"},
    {.style = PromptStyle::kInternLm2Chat,
     .name = "internlm2_chat",
     .system = kInternVl2System,
     .before_system = "<|im_start|>system\n",
     .after_system = "<|im_end|>",
     .before_later_turn = "<|im_end|>",
     .before_question = "<|im_start|>user\n",
     .after_question = "<|im_end|><|im_start|>assistant\n",
     .before_image = "<img>",
     .after_image = "</img>",
     .image_separator = "\n"},
}};

const Template& template_of(PromptStyle style) {
  return kTemplates[static_cast<std::size_t>(style)];
}

/// What stands before the question of a turn.
std::string turn_start(const Template& form, const std::optional<std::string>& system,
                       bool first_turn) {
  if (!first_turn) return std::string(form.before_later_turn);
  const std::string text = system.value_or(std::string(form.system));
  if (text.empty()) return std::string(form.ends_empty_system ? form.after_system : "");
  return c10::str(form.before_system, text, form.after_system);
}

/// The question with the style's texts around each of its placeholders.
std::string wrap_images(const Template& form, std::string_view question) {
  std::string out;
  for (std::size_t at = question.find(kImagePlaceholder); at != std::string_view::npos;
       at = question.find(kImagePlaceholder)) {
    out.append(question.substr(0, at));
    out.append(form.before_image).append(kImagePlaceholder).append(form.after_image);
    question.remove_prefix(at + kImagePlaceholder.size());
  }
  return out.append(question);
}

}  // namespace

std::string_view to_string(PromptStyle style) {
  return template_of(style).name;
}

std::vector<std::string> prompt_styles() {
  std::vector<std::string> out;
  out.reserve(kTemplates.size());
  for (const Template& form : kTemplates) out.emplace_back(form.name);
  return out;
}

PromptStyle parse_prompt_style(std::string_view name) {
  std::string known;
  for (const Template& form : kTemplates) {
    if (name == form.name) return form.style;
    known.append(known.empty() ? "" : ", ").append(form.name);
  }
  throw ConfigError(c10::str("prompt style must be one of ", known, ", got '", name, "'"));
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
  const Template& form = template_of(style);
  std::string text;
  for (std::int64_t i = placeholders; i < num_images; ++i)
    text.append(kImagePlaceholder).append(form.image_separator);
  text.append(question);
  return c10::str(turn_start(form, system, first_turn), form.before_question,
                  wrap_images(form, text), form.after_question);
}

}  // namespace libvar
