#include "text/added_tokens.h"

#include <c10/util/StringUtil.h>

#include <charconv>
#include <nlohmann/json.hpp>

#include "families/json_fields.h"
#include "libvar/error.h"

namespace libvar {
namespace {

using nlohmann::json;

constexpr const char* kConfigFile = "tokenizer_config.json";
constexpr const char* kAddedFile = "added_tokens.json";
constexpr const char* kSpecialFile = "special_tokens_map.json";

constexpr std::int64_t kMaxId = std::int64_t{1} << 24;

[[noreturn]] void fail(const std::string& file, const std::string& what) {
  throw ArchiveError(c10::str(file, ": ", what));
}

/// The object in a file; an empty one where the file isn't there.
json read_object(const std::map<std::string, std::string>& files, const std::string& name) {
  const auto file = files.find(name);
  if (file == files.end()) return json::object();
  return JsonFields::parse(file->second, name);
}

std::int64_t parse_id(const std::string& text) {
  std::int64_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  if (error != std::errc() || end != text.data() + text.size() || id < 0 || id > kMaxId) {
    fail(kConfigFile, c10::str("added_tokens_decoder: expected an id, got '", text, "'"));
  }
  return id;
}

/// transformers lets such tokens take white space beside them, or match whole words only.
void check_plain(const json& token, const std::string& content, const std::string& where) {
  for (const char* flag : {"lstrip", "rstrip", "single_word"}) {
    const auto value = token.find(flag);
    if (value != token.end() && *value != false) {
      fail(where, c10::str("token '", content, "' has ", flag, ", which is not supported"));
    }
  }
}

/// A special token is written as text or as an object with its text in `content`.
std::optional<std::string> token_text(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_object() && value.contains("content") && value["content"].is_string()) {
    return value["content"].get<std::string>();
  }
  return std::nullopt;
}

/// Texts of bos_token, eos_token, unk_token, pad_token and of the additional ones.
std::vector<std::string> special_texts(const json& object) {
  std::vector<std::string> texts;
  for (const auto& [key, value] : object.items()) {
    if (key == "additional_special_tokens" && value.is_array()) {
      for (const json& entry : value) {
        if (auto text = token_text(entry)) texts.push_back(*text);
      }
    } else if (key.ends_with("_token")) {
      if (auto text = token_text(value)) texts.push_back(*text);
    }
  }
  return texts;
}

}  // namespace

void AddedTokens::add_listed(const json& tokens, const std::string& where) {
  if (!tokens.is_array()) fail(where, "added_tokens: expected a list");
  for (const json& token : tokens) {
    const auto content = token_text(token);
    const auto id = token.is_object() ? token.value("id", json()) : json();
    if (!content || !id.is_number_integer() || id < 0 || id > kMaxId)
      fail(where, c10::str("added_tokens: expected content and id, found ", token.dump()));
    check_plain(token, *content, where);
    add({*content, id.get<std::int64_t>(), token.value("special", json(false)) == true,
         token.value("normalized", json(false)) == true});
  }
}

AddedTokens AddedTokens::read(
    const std::map<std::string, std::string>& files,
    const std::function<std::optional<std::int64_t>(std::string_view)>& piece_id) {
  AddedTokens tokens;
  tokens.add_files(files, piece_id);
  return tokens;
}

void AddedTokens::add_files(
    const std::map<std::string, std::string>& files,
    const std::function<std::optional<std::int64_t>(std::string_view)>& piece_id) {
  const json config = read_object(files, kConfigFile);
  json decoder = config.value("added_tokens_decoder", json::object());
  if (decoder.is_null()) decoder = json::object();
  if (!decoder.is_object()) fail(kConfigFile, "added_tokens_decoder: expected an object");
  for (const auto& [key, value] : decoder.items()) {
    const auto content = token_text(value);
    if (!content)
      fail(kConfigFile, c10::str("added_tokens_decoder: token ", key, " has no content"));
    check_plain(value, *content, kConfigFile);
    add({*content, parse_id(key), !value.is_object() || value.value("special", json(false)) == true,
         value.is_object() && value.value("normalized", json(false)) == true});
  }
  const json added = read_object(files, kAddedFile);
  for (const auto& [content, value] : added.items()) {
    if (!value.is_number_integer() || value.get<std::int64_t>() < 0 ||
        value.get<std::int64_t>() > kMaxId) {
      fail(kAddedFile, c10::str("'", content, "': expected an id"));
    }
    const AddedToken* known = find(content);
    if (known && known->id != value.get<std::int64_t>()) {
      fail(kAddedFile, c10::str("'", content, "' has id ", value.get<std::int64_t>(), ", but ",
                                known->id, " in ", kConfigFile));
    }
    add({content, value.get<std::int64_t>()});
  }
  for (const json& object : {config, read_object(files, kSpecialFile)}) {
    for (const std::string& text : special_texts(object)) {
      if (const auto id = piece_id(text)) add({text, *id});
    }
  }
}

void AddedTokens::add(AddedToken token) {
  if (token.content.empty() || find(token.content)) return;
  lengths_.insert(token.content.size());
  by_id_.emplace(token.id, token);
  by_content_.emplace(token.content, std::move(token));
}

const AddedToken* AddedTokens::match(std::string_view text, Which which) const {
  for (std::size_t length : lengths_) {
    if (length > text.size()) continue;
    const AddedToken* token = find(text.substr(0, length));
    if (token == nullptr) continue;
    if (which == Which::kAll || token->normalised == (which == Which::kNormalised)) return token;
  }
  return nullptr;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text, Which which) const {
  std::set<char> first_bytes;
  for (const auto& [content, token] : by_content_) first_bytes.insert(content.front());
  std::vector<Part> parts;
  std::size_t begin = 0;
  for (std::size_t at = 0; at < text.size();) {
    const AddedToken* token =
        first_bytes.contains(text[at]) ? match(text.substr(at), which) : nullptr;
    if (!token) {
      ++at;
      continue;
    }
    if (at > begin) parts.push_back({text.substr(begin, at - begin), std::nullopt});
    parts.push_back({text.substr(at, token->content.size()), token->id});
    begin = at += token->content.size();
  }
  if (begin < text.size()) parts.push_back({text.substr(begin), std::nullopt});
  return parts;
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto token = by_content_.find(content);
  return token == by_content_.end() ? nullptr : &token->second;
}

const AddedToken* AddedTokens::find(std::int64_t id) const {
  const auto token = by_id_.find(id);
  return token == by_id_.end() ? nullptr : &token->second;
}

}  // namespace libvar
