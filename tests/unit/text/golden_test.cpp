// Ids and strings against those of transformers (tests/golden/README.md).

#include <ATen/core/Tensor.h>

#include "reference/golden_files.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#include "catch.h"

namespace libvar {
namespace {

using Ids = std::vector<std::int64_t>;

const Tokenizer& golden() {
  static const auto tokenizer = [] {
    std::map<std::string, std::string> files;
    for (const char* name : {"tokenizer.model", "tokenizer_config.json", "added_tokens.json",
                             "special_tokens_map.json"}) {
      files[name] = testing::golden_bytes(std::string("tokenizer/") + name);
    }
    return load_tokenizer(files);
  }();
  return *tokenizer;
}

std::string streamed(const Ids& ids) {
  StreamDecoder stream(golden());
  std::string text;
  for (std::int64_t id : ids) {
    const std::string piece = stream.push(id);
    CHECK(is_utf8(piece));
    text += piece;
  }
  return text + stream.finish();
}

TEST_CASE("strings get transformers' ids and come back as its strings", "[text][golden]") {
  const nlohmann::json vectors = testing::golden_json("text_vectors.json");
  REQUIRE(vectors["encode"].size() >= 300);
  for (const auto& vector : vectors["encode"]) {
    INFO(vector.dump());
    const Ids ids = vector["ids"];
    const std::string text = vector["text"];
    CHECK(golden().encode(text, false) == ids);
    Ids with_bos = {vectors["bos"].get<std::int64_t>()};
    with_bos.insert(with_bos.end(), ids.begin(), ids.end());
    CHECK(golden().encode(text, true) == with_bos);
    CHECK(golden().decode(ids) == vector["decoded"]);
  }
}

TEST_CASE("ids become transformers' strings, at once and in a stream", "[text][golden]") {
  const nlohmann::json vectors = testing::golden_json("text_vectors.json");
  for (const char* key : {"decode", "decode_invalid"}) {
    REQUIRE(vectors[key].size() >= 30);
    for (const auto& vector : vectors[key]) {
      INFO(vector.dump());
      CHECK(golden().decode(vector["ids"]) == vector["text"]);
      CHECK(streamed(vector["ids"]) == vector["text"]);
    }
  }
}

}  // namespace
}  // namespace libvar
