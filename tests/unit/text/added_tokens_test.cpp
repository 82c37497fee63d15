#include "text/added_tokens.h"

#include <ATen/core/Tensor.h>
#include <c10/util/StringUtil.h>

#include "libvar/error.h"

#include "catch.h"

namespace libvar {
namespace {

using Files = std::map<std::string, std::string>;

AddedTokens read(const Files& files) {
  return AddedTokens::read(files, [](std::string_view piece) -> std::optional<std::int64_t> {
    if (piece == "<s>") return 1;
    if (piece == "</s>") return 2;
    return std::nullopt;
  });
}

std::string message(const Files& files) {
  try {
    read(files);
  } catch (const ArchiveError& error) {
    return error.what();
  }
  return "accepted";
}

/// The parts with ids in brackets: "a[5]b".
std::string shown(const AddedTokens& tokens, std::string_view text) {
  std::string out;
  for (const auto& part : tokens.split(text)) {
    out += part.id ? c10::str("[", *part.id, "]") : c10::str("'", part.text, "'");
  }
  return out;
}

TEST_CASE("text is cut at added tokens, the longest first", "[text]") {
  AddedTokens tokens;
  tokens.add({"<a>", 5});
  tokens.add({"<a><b>", 6});
  tokens.add({"\xc3\xa9", 7});
  CHECK(shown(tokens, "").empty());
  CHECK(shown(tokens, "plain") == "'plain'");
  CHECK(shown(tokens, "<a>") == "[5]");
  CHECK(shown(tokens, "x<a><a><b>y<a") == "'x'[5][6]'y<a'");
  CHECK(shown(tokens, "\xc3\xa9\xc3") == "[7]'\xc3'");
}

TEST_CASE("added tokens come from all three files", "[text]") {
  const AddedTokens tokens = read(
      {{"tokenizer_config.json",
        R"({"added_tokens_decoder": {"7": {"content": "<x>", "special": false}, "8": {"content": "<y>", "special": true}},
            "eos_token": {"content": "</s>"}})"},
       {"added_tokens.json", R"({"<image>": 9, "<x>": 7})"},
       {"special_tokens_map.json",
        R"({"bos_token": "<s>", "additional_special_tokens": ["<none>"]})"}});
  CHECK(tokens.find("<x>")->id == 7);
  CHECK_FALSE(tokens.find(7)->special);
  CHECK(tokens.find(8)->special);
  CHECK(tokens.find("<image>")->id == 9);
  CHECK(tokens.find("<s>")->id == 1);
  CHECK(tokens.find("</s>")->id == 2);
  CHECK(tokens.find("<none>") == nullptr);
  CHECK(tokens.end_id() == 10);
}

TEST_CASE("files that are not understood are named", "[text]") {
  CHECK(message({}) == "accepted");
  CHECK(message({{"added_tokens.json", "{"}}) == "added_tokens.json: is no JSON (byte 2)");
  CHECK(message({{"special_tokens_map.json", "[]"}}) ==
        "special_tokens_map.json: expected an object in braces, found []");
  CHECK(message({{"added_tokens.json", R"({"<x>": -1})"}}) ==
        "added_tokens.json: '<x>': expected an id");
  CHECK(message({{"tokenizer_config.json",
                  R"({"added_tokens_decoder": {"a": {"content": "<x>"}}})"}}) ==
        "tokenizer_config.json: added_tokens_decoder: expected an id, got 'a'");
  CHECK(message({{"tokenizer_config.json",
                  R"({"added_tokens_decoder": {"3": {"content": "<x>", "lstrip": true}}})"}}) ==
        "tokenizer_config.json: token '<x>' has lstrip, which is not supported");
  CHECK(
      message({{"tokenizer_config.json", R"({"added_tokens_decoder": {"3": {"content": "<x>"}}})"},
               {"added_tokens.json", R"({"<x>": 4})"}}) ==
      "added_tokens.json: '<x>' has id 4, but 3 in tokenizer_config.json");
}

}  // namespace
}  // namespace libvar
