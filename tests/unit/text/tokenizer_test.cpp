#include "text/tokenizer.h"

#include <ATen/core/Tensor.h>

#include <random>

#include "libvar/error.h"
#include "reference/golden_files.h"
#include "text/utf8.h"

#include "catch.h"

namespace libvar {
namespace {

using Ids = std::vector<std::int64_t>;
using Files = std::map<std::string, std::string>;

Files golden_files() {
  Files files;
  for (const char* name : {"tokenizer.model", "tokenizer_config.json", "added_tokens.json",
                           "special_tokens_map.json"}) {
    files[name] = testing::golden_bytes(std::string("tokenizer/") + name);
  }
  return files;
}

const Tokenizer& golden() {
  static const auto tokenizer = load_tokenizer(golden_files());
  return *tokenizer;
}

std::int64_t byte_id(unsigned char byte) {
  return 3 + byte;
}  // the byte pieces follow <unk>, <s> and </s>

std::string message(const Files& files) {
  try {
    load_tokenizer(files);
  } catch (const ArchiveError& error) {
    return error.what();
  }
  return "accepted";
}

// Ids in this file were made with the golden tokenizer.json and the tokenizers package.

TEST_CASE("each stretch of text between special tokens gets its own leading space", "[text]") {
  CHECK(golden().encode("USER: <image>\nWhat", true) ==
        Ids{1, 339, 481, 453, 512, 453, 13, 482, 311});
  CHECK(golden().encode("<image>", false) == Ids{512});
  CHECK(golden().encode("<s></s><unk><pad>", false) == Ids{1, 2, 0, 513});
  CHECK(golden().encode("", false).empty());
  CHECK(golden().encode("", true) == Ids{1});
}

TEST_CASE("text that no piece covers becomes bytes", "[text]") {
  CHECK(golden().encode("\xe6\xb1\x89", false) ==
        Ids{453, byte_id(0xe6), byte_id(0xb1), byte_id(0x89)});
  CHECK(golden().encode(std::string_view("\0", 1), false) == Ids{453, byte_id(0)});
}

TEST_CASE("decode strips one leading space and drops special tokens", "[text]") {
  for (const std::string text :
       {"USER: What is this?", "  two", "a  b", "\n", "\xf0\x9f\x98\x80 \xc3\xa9", ""}) {
    CHECK(golden().decode(golden().encode(text, true)) == text);
  }
  CHECK(golden().decode({1, 512, 2, 513, 0}).empty());
  CHECK(golden().decode({-200, 100000, -1}).empty());
}

TEST_CASE("a run of bytes that is no UTF-8 becomes one mark for each byte", "[text]") {
  const std::string mark(kReplacementCharacter);
  CHECK(golden().decode({byte_id(0xe6), byte_id(0xb1)}) == mark + mark);
  CHECK(golden().decode({byte_id(0xe6), byte_id(0xb1), byte_id(0x89), byte_id(0xff)}) ==
        mark + mark + mark + mark);
  CHECK(golden().decode({byte_id(0xe6), 2, byte_id(0xb1), byte_id(0x89)}) == "\xe6\xb1\x89");
}

TEST_CASE("pieces of a stream are whole characters and add up to the text", "[text]") {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    Ids ids;
    for (int i = 0; i < 12; ++i) {
      const bool byte = random() % 2 == 0;
      ids.push_back(byte ? byte_id(static_cast<unsigned char>(random()))
                         : static_cast<std::int64_t>(random() % 514));
      if (random() % 4 == 0) {
        for (unsigned char c : std::string("\xe6\xb1\x89")) ids.push_back(byte_id(c));
      }
    }
    StreamDecoder stream(golden());
    std::string all;
    for (std::int64_t id : ids) {
      const std::string piece = stream.push(id);
      REQUIRE(is_utf8(piece));
      all += piece;
    }
    all += stream.finish();
    REQUIRE(all == golden().decode(ids));
  }
}

TEST_CASE("a piece of plain text comes with its token", "[text]") {
  StreamDecoder stream(golden());
  CHECK(stream.push(339) == "USER");
  CHECK(stream.push(481) == ":");
  CHECK(stream.push(byte_id('a')).empty());
  CHECK(stream.push(482) == "aW");
  CHECK(stream.push(byte_id(0xe6)).empty());
  CHECK(stream.finish() == kReplacementCharacter);
  CHECK(stream.finish().empty());
}

TEST_CASE("pieces and special tokens are known by name", "[text]") {
  CHECK(golden().token_id("<image>") == 512);
  CHECK(golden().token_id("</s>") == 2);
  CHECK(golden().token_id("<unk>") == 0);
  CHECK(golden().token_id("<0x00>") == 3);
  CHECK_FALSE(golden().token_id("no such piece").has_value());
  CHECK(golden().size() == 514);
}

TEST_CASE("no BOS where the tokenizer adds none", "[text]") {
  Files files = golden_files();
  files["tokenizer_config.json"] = R"({"add_bos_token": false})";
  CHECK(load_tokenizer(files)->encode("a", true) == golden().encode("a", false));
  files.erase("tokenizer_config.json");
  CHECK(load_tokenizer(files)->encode("a", true) == golden().encode("a", true));
}

TEST_CASE("the original layout's tokenizer has no image token", "[text]") {
  Files files = golden_files();
  for (const char* name : {"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"})
    files.erase(name);
  const auto tokenizer = load_tokenizer(files);
  CHECK_FALSE(tokenizer->token_id("<image>").has_value());
  CHECK(tokenizer->size() == 512);
  CHECK(tokenizer->encode("a</s>b", false) == golden().encode("a</s>b", false));
}

TEST_CASE("a tokenizer that is missing or damaged is refused", "[text]") {
  CHECK(message({}).starts_with("the tokenizer is missing"));
  CHECK(message({{"tokenizer.model", "no model"}}).starts_with("tokenizer.model: "));
  Files files = golden_files();
  files["tokenizer.model"].resize(1000);
  CHECK(message(files).starts_with("tokenizer.model: "));
  files["tokenizer.model"].clear();
  CHECK(message(files).starts_with("tokenizer.model: "));
}

TEST_CASE("UTF-8 is well formed or not", "[text]") {
  for (const std::string good : {"", "a", "\xc2\x80", "\xe0\xa0\x80", "\xed\x9f\xbf",
                                 "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf"}) {
    CHECK(is_utf8(good));
  }
  for (const std::string bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xc3", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\xe6\xb1", "\xe6\xb1z"}) {
    CHECK_FALSE(is_utf8(bad));
  }
}

}  // namespace
}  // namespace libvar
