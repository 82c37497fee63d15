#include "text/prompt.h"

#include <ATen/core/Tensor.h>

#include "libvar/error.h"
#include "libvar/request.h"

#include "catch.h"

namespace libvar {
namespace {

const std::string kSystem =
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, "
    "and polite answers to the user's questions.";

TEST_CASE("llava_hf has no system text, vicuna_v1 has its own", "[text]") {
  CHECK(build_prompt(PromptStyle::kLlavaHf, std::nullopt, "What is it?", 1) ==
        "USER: <image>\nWhat is it? ASSISTANT:");
  CHECK(build_prompt(PromptStyle::kVicunaV1, std::nullopt, "What is it?", 1) ==
        kSystem + " USER: <image>\nWhat is it? ASSISTANT:");
}

TEST_CASE("a system text replaces the style's own, an empty one leaves it out", "[text]") {
  const PromptStyle style = GENERATE(PromptStyle::kLlavaHf, PromptStyle::kVicunaV1);
  CHECK(build_prompt(style, "Be brief.", "Hi", 0) == "Be brief. USER: Hi ASSISTANT:");
  CHECK(build_prompt(style, "", "Hi", 0) == "USER: Hi ASSISTANT:");
}

TEST_CASE("a further turn starts with what the published template puts behind an answer",
          "[text]") {
  CHECK(build_prompt(PromptStyle::kLlavaHf, "Be brief.", "And now?", 0, false) ==
        "USER: And now? ASSISTANT:");
  CHECK(build_prompt(PromptStyle::kVicunaV1, "Be brief.", "And now?", 0, false) ==
        "</s>USER: And now? ASSISTANT:");
  CHECK(build_prompt(PromptStyle::kVicunaV1, std::nullopt, "And here?", 1, false) ==
        "</s>USER: <image>\nAnd here? ASSISTANT:");
}

TEST_CASE("images stand before the question unless it says where", "[text]") {
  const PromptStyle style = PromptStyle::kLlavaHf;
  CHECK(build_prompt(style, std::nullopt, "Same?", 2) ==
        "USER: <image>\n<image>\nSame? ASSISTANT:");
  CHECK(build_prompt(style, std::nullopt, "<image> or <image>?", 2) ==
        "USER: <image> or <image>? ASSISTANT:");
  CHECK_THROWS_AS(build_prompt(style, std::nullopt, "<image>?", 2), InputError);
  CHECK_THROWS_AS(build_prompt(style, std::nullopt, "<image>?", 0), InputError);
  CHECK(count_image_placeholders("") == 0);
  CHECK(count_image_placeholders("<image><image>< image>") == 2);
}

TEST_CASE("vicuna_v1_nosys begins with a space", "[text]") {
  const PromptStyle style = PromptStyle::kVicunaV1NoSystem;
  CHECK(build_prompt(style, std::nullopt, "Hi", 1) == " USER: <image>\nHi ASSISTANT:");
  CHECK(build_prompt(style, std::nullopt, "And now?", 0, false) == "</s>USER: And now? ASSISTANT:");
}

TEST_CASE("qwen2_vl wraps turns and images in special tokens", "[text]") {
  const PromptStyle style = PromptStyle::kQwen2Vl;
  const std::string image = "<|vision_start|><image><|vision_end|>";
  const std::string end = "<|im_end|>\n<|im_start|>assistant\n";
  CHECK(build_prompt(style, std::nullopt, "What is it?", 1) ==
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + image +
            "What is it?" + end);
  CHECK(build_prompt(style, "", "Hi", 0) == "<|im_start|>user\nHi" + end);
  CHECK(build_prompt(style, "", "<image> or <image>?", 2) ==
        "<|im_start|>user\n" + image + " or " + image + "?" + end);
  CHECK(build_prompt(style, "Be brief.", "And now?", 0, false) ==
        "<|im_end|>\n<|im_start|>user\nAnd now?" + end);
}

TEST_CASE("internlm2_chat has no newline behind a turn", "[text]") {
  const PromptStyle style = PromptStyle::kInternLm2Chat;
  const std::string system =
      "<|im_start|>"
      "system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
      "是一个有用无害的人工智能助手。<|im_end|>";
  const std::string end = "<|im_end|><|im_start|>assistant\n";
  CHECK(build_prompt(style, std::nullopt, "What is it?", 1) ==
        system + "<|im_start|>user\n<img><image></img>\nWhat is it?" + end);
  CHECK(build_prompt(style, "", "<image> or <image>?", 2) ==
        "<|im_start|>user\n<img><image></img> or <img><image></img>?" + end);
  CHECK(build_prompt(style, "", "And now?", 0, false) ==
        "<|im_end|><|im_start|>user\nAnd now?" + end);
}

TEST_CASE("llama_3 has header blocks; the tokenizer puts the begin of text in front", "[text]") {
  const PromptStyle style = PromptStyle::kLlama3;
  const std::string user = "<|start_header_id|>user<|end_header_id|>\n\n";
  const std::string end = "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n";
  CHECK(build_prompt(style, "Be brief.", "Hi", 1) ==
        "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>" + user + "<image>\nHi" +
            end);
  CHECK(build_prompt(style, "", "And now?", 0, false) == "<|eot_id|>" + user + "And now?" + end);
}

TEST_CASE("prompt styles are known by name", "[text]") {
  for (const std::string& name : prompt_styles()) {
    CHECK(to_string(parse_prompt_style(name)) == name);
  }
  CHECK(prompt_styles().front() == "llava_hf");
  CHECK_THROWS_AS(parse_prompt_style("auto"), ConfigError);
}

}  // namespace
}  // namespace libvar
