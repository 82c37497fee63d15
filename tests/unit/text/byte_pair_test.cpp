// Byte-level byte pair encoding, and all tokenizers on the mixed text of tests/golden/bpe.

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdio>

#include "libvar/error.h"
#include "reference/golden_files.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include "catch.h"

namespace libvar {
namespace {

using Ids = std::vector<std::int64_t>;
using Files = std::map<std::string, std::string>;
using nlohmann::json;

Files files_of(const std::string& folder, const std::vector<std::string>& names) {
  Files files;
  for (const std::string& name : names) files[name] = testing::golden_bytes(folder + "/" + name);
  return files;
}

std::unique_ptr<Tokenizer> load(const std::string& folder) {
  if (folder == "tokenizer") {
    return load_tokenizer(files_of(folder, {"tokenizer.model", "tokenizer_config.json",
                                            "added_tokens.json", "special_tokens_map.json"}));
  }
  if (folder == "bpe/internlm2")
    return load_tokenizer(files_of(folder, {"tokenizer.model", "added_tokens.json"}));
  return load_tokenizer(files_of(folder, {"tokenizer.json"}));
}

/// FNV-1a-64 of the ids, four little-endian bytes each, as goldens/bpe.py writes it.
std::string digest(const Ids& ids) {
  std::uint64_t value = 0xCBF29CE484222325U;
  for (const std::int64_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8)
      value = (value ^ static_cast<std::uint64_t>(id >> shift & 0xff)) * 0x100000001B3U;
  }
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

std::string streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer);
  std::string text;
  for (const std::int64_t id : ids) {
    const std::string piece = stream.push(id);
    CHECK(is_utf8(piece));
    text += piece;
  }
  return text + stream.finish();
}

TEST_CASE("five thousand lines of mixed text get Python's ids in every tokenizer",
          "[text][golden]") {
  const json golden = testing::golden_json("bpe/lines.json");
  REQUIRE(golden.at("lines").size() >= 5000);
  for (std::size_t model = 0; model < golden.at("models").size(); ++model) {
    const std::string folder = golden.at("models")[model];
    const auto tokenizer = load(folder);
    std::size_t number = 0;
    for (const json& line : golden.at("lines")) {
      const std::string& text = line[0].get_ref<const std::string&>();
      const json& expected = line[model + 1];
      const Ids ids = tokenizer->encode(text, false);
      const bool right_ids = digest(ids) == expected[0];
      const bool has_text = folder != "bpe/internlm2";  // its Python gives ids alone
      const std::string decoded = has_text ? tokenizer->decode(ids) : std::string();
      const bool right_text =
          !has_text || decoded == (expected.size() > 1 ? expected[1].get<std::string>() : text);
      if (!right_ids || !right_text || (has_text && number % 10 == 0)) {
        CAPTURE(folder, line.dump(), ids, decoded);
        CHECK(right_ids);
        CHECK(right_text);
        if (has_text) CHECK(streamed(*tokenizer, ids) == decoded);
      }
      ++number;
    }
  }
}

TEST_CASE("special tokens in front, and the first lines id by id", "[text][golden]") {
  const json golden = testing::golden_json("bpe/lines.json");
  const auto qwen2 = load("bpe/qwen2"), llama3 = load("bpe/llama3");
  for (const json& example : golden.at("examples")) {
    const std::string text = example.at("text");
    CHECK(qwen2->encode(text, true) == example.at("qwen2").get<Ids>());
    CHECK(llama3->encode(text, true) == example.at("llama3").get<Ids>());
  }
  CHECK(llama3->encode("", true) == Ids{*llama3->token_id("<|begin_of_text|>")});
  CHECK(qwen2->size() == *qwen2->token_id("<é>") + 1);
}

TEST_CASE("random ids of a byte-level tokenizer become Python's text, also in a stream",
          "[text][golden]") {
  const json golden = testing::golden_json("bpe/lines.json");
  for (const std::string name : {"qwen2", "llama3"}) {
    const auto tokenizer = load("bpe/" + name);
    for (const json& stream : golden.at(name + "_streams")) {
      CAPTURE(stream.dump());
      CHECK(tokenizer->decode(stream.at("ids")) == stream.at("text"));
      CHECK(streamed(*tokenizer, stream.at("ids")) == stream.at("text"));
    }
  }
}

TEST_CASE("vocab.json and merges.txt are the same tokenizer as tokenizer.json", "[text]") {
  const auto one = load("bpe/qwen2");
  const auto other =
      load_tokenizer(files_of("bpe/qwen2", {"vocab.json", "merges.txt", "tokenizer_config.json"}));
  for (const char* text :
       {"I don't know, 2024.", "<|im_start|>user\nHi<|im_end|>", "<é> e\xcc\x81"}) {
    CHECK(one->encode(text, true) == other->encode(text, true));
  }
  CHECK(one->size() == other->size());
}

TEST_CASE("long texts take time in proportion to their length", "[text]") {
  const auto tokenizer = load("bpe/qwen2");
  for (const std::string unit : {" ", "a", "\n", "ab "}) {
    std::string text;
    while (text.size() < 100000) text += unit;
    const auto begin = std::chrono::steady_clock::now();
    CHECK(tokenizer->decode(tokenizer->encode(text, false)) == text);
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    CHECK(time.count() < 20.0);  // quadratic: minutes
  }
}

TEST_CASE("text that is not UTF-8 is an error, not a guess", "[text]") {
  CHECK_THROWS_AS(load("bpe/qwen2")->encode("a\xff", false), InputError);
  CHECK_THROWS_AS(load("bpe/llama3")->encode("a\xff", false), InputError);
}

TEST_CASE("pieces are cut at Unicode's white space", "[text]") {
  const PieceSplitter splitter("[^\\s]+|\\s+");
  // U+180E is no white space, U+0085 is.
  CHECK(splitter
            .split("a\xe1\xa0\x8e"
                   "b\xc2\x85"
                   "c")
            .size() == 3);
  CHECK_THROWS_AS(PieceSplitter("(a"), ArchiveError);
}

std::string error_of(const Files& files) {
  try {
    load_tokenizer(files);
  } catch (const ArchiveError& error) {
    return error.what();
  }
  return "accepted";
}

/// The error with one value of tokenizer.json changed.
std::string error_with(const std::string& pointer, const json& value) {
  json tokenizer = testing::golden_json("bpe/qwen2/tokenizer.json");
  tokenizer[json::json_pointer(pointer)] = value;
  return error_of({{"tokenizer.json", tokenizer.dump()}});
}

TEST_CASE("a tokenizer.json that is not understood is refused by key and value", "[text]") {
  using Catch::Matchers::Contains;
  CHECK_THAT(error_of({}), Contains("tokenizer is missing"));
  CHECK_THAT(error_of({{"vocab.json", "{}"}}), Contains("merges.txt is missing"));
  CHECK_THAT(error_with("/model/type", "Unigram"), Contains("model: type: expected BPE, found"));
  CHECK_THAT(error_with("/model/byte_fallback", true), Contains("tokenizer.model is missing"));
  CHECK_THAT(error_with("/model/merges/0", "abc"), Contains("merges: expected two tokens"));
  CHECK_THAT(error_with("/model/merges/0", json::array({"a", "\u00e9\u00e9"})),
             Contains("is not in the vocabulary"));
  CHECK_THAT(error_with("/model/vocab/a", 0), Contains("is the second token of id 0"));
  CHECK_THAT(error_with("/model/vocab/a", "x"), Contains("expected an id"));
  CHECK_THAT(error_with("/normalizer", json{{"type", "NFKC"}}), Contains("expected NFC"));
  CHECK_THAT(error_with("/pre_tokenizer", json{{"type", "Whitespace"}}),
             Contains("pre_tokenizer: type: expected"));
  CHECK_THAT(error_with("/pre_tokenizer/pretokenizers/0/pattern/Regex", "(a"),
             Contains("does not compile"));
  CHECK_THAT(error_with("/pre_tokenizer/pretokenizers/1/add_prefix_space", true),
             Contains("add_prefix_space: expected false"));
  CHECK_THAT(error_with("/post_processor", json{{"type", "BertProcessing"}}),
             Contains("expected ByteLevel or TemplateProcessing"));
  CHECK_THAT(error_with("/added_tokens/0/lstrip", true),
             Contains("lstrip, which is not supported"));
}

TEST_CASE("invalid UTF-8 is replaced by maximal subparts", "[text]") {
  const std::string mark(kReplacementCharacter);
  CHECK(replace_invalid_utf8("a\xf0\x9f\x98") == "a" + mark);
  CHECK(replace_invalid_utf8("\xf0\x9f\x98z\xff\xfe") == mark + "z" + mark + mark);
  CHECK(replace_invalid_utf8("\xed\xa0\x80\xe0\x80") == mark + mark + mark + mark + mark);
  CHECK(cut_character_length("a\xf0\x9f") == 2);
  CHECK(cut_character_length("\xc3\xa9") == 0);
}

}  // namespace
}  // namespace libvar
