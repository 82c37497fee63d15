#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace libvar {

/// The bytes that the characters of a byte-level token stand for (GPT-2's map of bytes to
/// printable characters); none where a character is not of that map.
std::optional<std::string> byte_level_bytes(std::string_view token);

/// A byte-level vocabulary and its merges.
///
/// Source: byte pair encoding as the `tokenizers` library computes it: of all neighbours that can
/// be merged the pair of the lowest rank is, the leftmost of equal ones, until none can be.
class BytePairModel {
 public:
  using Vocabulary = std::unordered_map<std::string, std::int64_t>;

  /// @param vocabulary     id of each token, spelt in characters of the byte map
  /// @param merges         pairs of tokens by rank
  /// @param ignore_merges  a piece that is a token is that token, whatever the merges say
  /// @throws ArchiveError  a merge whose parts or result are no tokens; two tokens of one id
  BytePairModel(const Vocabulary& vocabulary,
                const std::vector<std::pair<std::string, std::string>>& merges, bool ignore_merges);

  /// Appends the ids of a piece of text. Bytes without a token are left out.
  void encode(std::string_view piece, std::vector<std::int64_t>& ids) const;

  /// Bytes of a token; null: there is no such id.
  const std::string* bytes_of(std::int64_t id) const;

  std::optional<std::int64_t> id_of(std::string_view bytes) const;

  /// One past the largest id.
  std::int64_t end_id() const { return static_cast<std::int64_t>(bytes_.size()); }

 private:
  struct Merge {
    std::int64_t rank, id;
  };

  const Merge* merge_of(std::int64_t left, std::int64_t right) const;

  std::vector<std::string> bytes_;                          // by id
  std::vector<bool> known_;                                 // ids that are tokens
  std::unordered_map<std::string_view, std::int64_t> ids_;  // keys lie in bytes_
  std::unordered_map<std::uint64_t, Merge> merges_;         // left * 2^32 + right
  bool ignore_merges_;
};

}  // namespace libvar
