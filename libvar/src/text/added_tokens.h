#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// A piece of text that a tokenizer takes as one token wherever it stands.
struct AddedToken {
  std::string content;
  std::int64_t id = 0;
  bool special = true;      ///< left out of decoded text
  bool normalised = false;  ///< looked for in normalised text
};

/// The added tokens of a tokenizer, and the split of a text at them.
class AddedTokens {
 public:
  /// A stretch of plain text, or an added token.
  struct Part {
    std::string_view text;
    std::optional<std::int64_t> id;
  };

  /// Reads tokenizer_config.json, added_tokens.json and special_tokens_map.json where they are
  /// there.
  /// @param piece_id  id of a piece of the tokenizer's own vocabulary
  /// @throws ArchiveError  a file is no JSON of the expected form, or a token strips the text
  /// beside it
  static AddedTokens read(
      const std::map<std::string, std::string>& files,
      const std::function<std::optional<std::int64_t>(std::string_view)>& piece_id);

  /// Adds those of a tokenizer.json: its list `added_tokens`.
  /// @throws ArchiveError  as read
  void add_listed(const nlohmann::json& tokens, const std::string& where);

  /// Adds what read() reads.
  void add_files(const std::map<std::string, std::string>& files,
                 const std::function<std::optional<std::int64_t>(std::string_view)>& piece_id);

  /// Adds a token unless its text is known.
  void add(AddedToken token);

  /// Which tokens a split looks for.
  enum class Which { kAll, kRaw, kNormalised };

  /// The text cut at added tokens, from left to right, the longest one first where several match.
  /// No part is empty.
  std::vector<Part> split(std::string_view text, Which which = Which::kAll) const;

  const AddedToken* find(std::string_view content) const;
  const AddedToken* find(std::int64_t id) const;

  /// One past the largest id; 0 where there is none.
  std::int64_t end_id() const { return by_id_.empty() ? 0 : by_id_.rbegin()->first + 1; }

 private:
  const AddedToken* match(std::string_view text, Which which) const;

  std::map<std::string, AddedToken, std::less<>> by_content_;
  std::map<std::int64_t, AddedToken> by_id_;
  std::set<std::size_t, std::greater<>> lengths_;
};

}  // namespace libvar
