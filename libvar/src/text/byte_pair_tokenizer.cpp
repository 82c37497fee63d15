#include <c10/util/StringUtil.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

#include "families/json_fields.h"
#include "libvar/error.h"
#include "text/added_tokens.h"
#include "text/byte_pair_model.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizers.h"
#include "text/utf8.h"

namespace libvar {
namespace {

using nlohmann::json;

constexpr const char* kFile = "tokenizer.json";
constexpr const char* kVocabularyFile = "vocab.json";
constexpr const char* kMergesFile = "merges.txt";

/// What the files of a byte-level tokenizer say.
struct Description {
  BytePairModel::Vocabulary vocabulary;
  std::vector<std::pair<std::string, std::string>> merges;
  bool ignore_merges = false;
  bool nfc = false;
  std::string pattern;
  std::vector<std::string> prefix;  ///< special tokens that encode puts in front
  AddedTokens added;
};

void require(const JsonFields& fields, const std::string& key, bool holds,
             const std::string& expected) {
  if (!holds) fields.fail(key, expected);
}

bool empty(const JsonFields& fields, const std::string& key) {
  return !fields.has(key) || fields.at(key) == "" || fields.at(key) == false;
}

void read_vocabulary(const json& vocabulary, const std::string& where, Description& out) {
  if (!vocabulary.is_object()) throw ArchiveError(where + ": expected an object of tokens and ids");
  out.vocabulary.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary.items()) {
    if (!id.is_number_integer())
      throw ArchiveError(where + ": '" + token + "': expected an id, found " + id.dump());
    out.vocabulary.emplace(token, id.get<std::int64_t>());
  }
}

/// "left right"
std::pair<std::string, std::string> parse_merge(const std::string& line, const std::string& where) {
  const std::size_t space = line.find(' ');
  if (space == 0 || space == std::string::npos || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string::npos) {
    throw ArchiveError(where + ": expected two tokens and a space between them, found '" + line +
                       "'");
  }
  return {line.substr(0, space), line.substr(space + 1)};
}

void read_merges(const json& merges, const std::string& where, Description& out) {
  if (!merges.is_array()) throw ArchiveError(where + ": expected a list of merges");
  out.merges.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_string()) {
      out.merges.push_back(parse_merge(merge.get_ref<const std::string&>(), where));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      out.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      throw ArchiveError(where + ": expected pairs of tokens, found " + merge.dump());
    }
  }
}

void read_model(const JsonFields& model, Description& out) {
  require(model, "type", model.text("type", "BPE") == "BPE", "BPE");
  if (!empty(model, "byte_fallback")) {
    throw ArchiveError(
        "tokenizer.model is missing: tokenizer.json describes a sentencepiece tokenizer, which is "
        "read from there");
  }
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    require(model, key, empty(model, key), "nothing: a byte-level model needs none");
  }
  read_vocabulary(model.at("vocab"), std::string(kFile) + ": model: vocab", out);
  read_merges(model.at("merges"), std::string(kFile) + ": model: merges", out);
  out.ignore_merges = model.boolean("ignore_merges", false);
}

void read_normalizer(const JsonFields& file, Description& out) {
  if (!file.has("normalizer")) return;
  const JsonFields normalizer = file.object("normalizer");
  if (normalizer.text("type") == "Sequence") {
    const json& steps = normalizer.at("normalizers");
    for (const json& step : steps) {
      if (!step.is_object() || step.value("type", "") != "NFC")
        normalizer.fail("normalizers", "NFC and nothing else");
      out.nfc = true;
    }
    return;
  }
  require(normalizer, "type", normalizer.text("type") == "NFC", "NFC");
  out.nfc = true;
}

/// A ByteLevel pre-tokenizer; true where it splits by GPT-2's pattern itself.
bool read_byte_level(const JsonFields& step) {
  require(step, "add_prefix_space", !step.boolean("add_prefix_space", true), "false");
  return step.boolean("use_regex", true);
}

void read_pre_tokenizer(const JsonFields& file, Description& out) {
  const JsonFields pre = file.object("pre_tokenizer");
  if (pre.text("type") == "ByteLevel") {
    require(pre, "use_regex", read_byte_level(pre), "true, where no Split stands before it");
    out.pattern = kGpt2Pattern;
    return;
  }
  const std::string expected = "a Split by a regular expression and a ByteLevel without one";
  require(pre, "type", pre.text("type") == "Sequence", "ByteLevel, or a Sequence of " + expected);
  const json& steps = pre.at("pretokenizers");
  if (!steps.is_array() || steps.size() != 2 || !steps[0].is_object() || !steps[1].is_object())
    pre.fail("pretokenizers", expected);
  const std::string where = std::string(kFile) + ": pre_tokenizer: pretokenizers";
  const JsonFields split(steps[0], where), bytes(steps[1], where);
  require(split, "type", split.text("type") == "Split", "Split");
  require(split, "behavior", split.text("behavior") == "Isolated", "Isolated");
  require(split, "invert", !split.boolean("invert", false), "false");
  out.pattern = split.object("pattern").text("Regex");
  require(bytes, "type", bytes.text("type") == "ByteLevel", "ByteLevel");
  require(bytes, "use_regex", !read_byte_level(bytes), "false, where a Split stands before it");
}

/// The special tokens that a template puts before a text.
void read_post_processor(const JsonFields& post, Description& out) {
  const std::string type = post.text("type");
  if (type == "ByteLevel") return;  // offsets alone
  if (type == "Sequence") {
    for (const json& step : post.at("processors"))
      read_post_processor(JsonFields(step, std::string(kFile) + ": post_processor: processors"),
                          out);
    return;
  }
  require(post, "type", type == "TemplateProcessing", "ByteLevel or TemplateProcessing");
  bool behind = false;
  for (const json& part : post.at("single")) {
    if (part.contains("Sequence")) {
      behind = true;
    } else if (!behind && part.contains("SpecialToken") && part["SpecialToken"].contains("id") &&
               part["SpecialToken"]["id"].is_string()) {
      out.prefix.push_back(part["SpecialToken"]["id"].get<std::string>());
    } else {
      post.fail("single", "special tokens before the text and none behind it");
    }
  }
}

Description read_tokenizer_json(const std::string& text) {
  Description out;
  const json tokenizer = JsonFields::parse(text, kFile);
  const JsonFields file(tokenizer, kFile);
  read_model(file.object("model"), out);
  read_normalizer(file, out);
  read_pre_tokenizer(file, out);
  if (file.has("post_processor")) read_post_processor(file.object("post_processor"), out);
  if (file.has("decoder")) {
    const JsonFields decoder = file.object("decoder");
    require(decoder, "type", decoder.text("type") == "ByteLevel", "ByteLevel");
  }
  if (file.has("added_tokens")) out.added.add_listed(file.at("added_tokens"), kFile);
  return out;
}

/// vocab.json and merges.txt, as Qwen2 publishes them: its normaliser and its pattern.
Description read_vocabulary_files(const CheckpointTexts& files) {
  Description out;
  out.nfc = true;
  out.pattern = kQwen2Pattern;
  const auto merges = files.find(kMergesFile);
  if (merges == files.end())
    throw ArchiveError(c10::str(kMergesFile, " is missing, ", kVocabularyFile, " is there"));
  read_vocabulary(JsonFields::parse(files.at(kVocabularyFile), kVocabularyFile), kVocabularyFile,
                  out);
  std::string_view rest = merges->second;
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    std::string line(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line.starts_with("#version")) continue;
    out.merges.push_back(parse_merge(line, kMergesFile));
  }
  return out;
}

Description read_description(const CheckpointTexts& files) {
  const auto file = files.find(kFile);
  Description out =
      file != files.end() ? read_tokenizer_json(file->second) : read_vocabulary_files(files);
  const auto id_of = [&](std::string_view piece) -> std::optional<std::int64_t> {
    const auto found = out.vocabulary.find(std::string(piece));
    if (found == out.vocabulary.end()) return {};
    return found->second;
  };
  out.added.add_files(files, id_of);
  return out;
}

/// Byte-level byte pair encoding, equal to the `tokenizers` library.
class BytePairTokenizer : public Tokenizer {
 public:
  explicit BytePairTokenizer(const Description& description)
      : model_(description.vocabulary, description.merges, description.ignore_merges),
        splitter_(description.pattern),
        added_(description.added),
        nfc_(description.nfc) {
    for (const std::string& content : description.prefix) {
      const auto id = token_id(content);
      if (!id)
        throw ArchiveError(c10::str(kFile, ": post_processor: token ", content, " is missing"));
      prefix_.push_back(*id);
    }
  }

  std::vector<std::int64_t> encode(std::string_view text, bool add_bos) const override {
    std::vector<std::int64_t> ids;
    if (add_bos) ids = prefix_;
    // As transformers does: tokens that are not normalised are found in the text as it stands, the
    // others in what the normaliser makes of the rest.
    for (const AddedTokens::Part& part : added_.split(text, AddedTokens::Which::kRaw)) {
      if (part.id) {
        ids.push_back(*part.id);
        continue;
      }
      const std::string normalised = nfc_ ? normalise_nfc(part.text) : std::string(part.text);
      for (const AddedTokens::Part& inner :
           added_.split(normalised, AddedTokens::Which::kNormalised)) {
        if (inner.id) {
          ids.push_back(*inner.id);
          continue;
        }
        for (const std::string_view piece : splitter_.split(inner.text)) model_.encode(piece, ids);
      }
    }
    return ids;
  }

  std::string decode(const std::vector<std::int64_t>& ids) const override {
    std::string bytes;
    for (const std::int64_t id : ids) bytes += bytes_of(id);
    return replace_invalid_utf8(bytes);
  }

  std::size_t certain(const std::vector<std::int64_t>& ids) const override {
    std::size_t count = ids.size();
    while (count > 0 && cut_character_length(last_bytes(ids, count)) > 0) --count;
    return count;
  }

  std::optional<std::int64_t> token_id(std::string_view piece) const override {
    if (const AddedToken* token = added_.find(piece)) return token->id;
    return model_.id_of(piece);
  }

  std::int64_t size() const override { return std::max(model_.end_id(), added_.end_id()); }

 private:
  /// The last bytes of the first `count` ids, enough to hold a character that is cut.
  std::string last_bytes(const std::vector<std::int64_t>& ids, std::size_t count) const {
    std::string tail;
    while (count > 0 && tail.size() < 3) tail.insert(0, bytes_of(ids[--count]));
    return tail;
  }

  /// What decode adds for an id: nothing for special tokens and ids without text.
  std::string bytes_of(std::int64_t id) const {
    if (const AddedToken* token = added_.find(id)) {
      if (token->special) return {};
      return byte_level_bytes(token->content).value_or(token->content);
    }
    const std::string* bytes = model_.bytes_of(id);
    return bytes == nullptr ? std::string() : *bytes;
  }

  BytePairModel model_;
  PieceSplitter splitter_;
  AddedTokens added_;
  bool nfc_;
  std::vector<std::int64_t> prefix_;
};

}  // namespace

std::unique_ptr<Tokenizer> load_byte_pair_tokenizer(const CheckpointTexts& files) {
  return std::make_unique<BytePairTokenizer>(read_description(files));
}

}  // namespace libvar
