#include "text/byte_pair_model.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <queue>
#include <tuple>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxId = std::int64_t{1} << 24;

/// Byte of each character of GPT-2's map, -1 where there is none: printable Latin-1 characters
/// stand for themselves, the other bytes for the characters from U+0100 on, in order.
std::array<int, 0x144> make_byte_map() {
  std::array<int, 0x144> map{};
  map.fill(-1);
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable =
        (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    map[static_cast<std::size_t>(printable ? byte : next++)] = byte;
  }
  return map;
}

std::uint64_t pair_key(std::int64_t left, std::int64_t right) {
  return static_cast<std::uint64_t>(left) << 32 | static_cast<std::uint64_t>(right);
}

}  // namespace

std::optional<std::string> byte_level_bytes(std::string_view token) {
  static const std::array<int, 0x144> map = make_byte_map();
  std::string out;
  for (std::size_t i = 0; i < token.size();) {
    const auto lead = static_cast<unsigned char>(token[i]);
    std::size_t code = lead;
    if (lead >= 0x80) {  // the map ends below U+0144: two bytes of UTF-8
      if (lead < 0xc2 || lead > 0xc5 || i + 1 == token.size()) return {};
      code = static_cast<std::size_t>(lead & 0x1f) << 6 |
             (static_cast<unsigned char>(token[++i]) & 0x3f);
    }
    ++i;
    if (code >= map.size() || map[code] < 0) return {};
    out += static_cast<char>(map[code]);
  }
  return out;
}

BytePairModel::BytePairModel(const Vocabulary& vocabulary,
                             const std::vector<std::pair<std::string, std::string>>& merges,
                             bool ignore_merges)
    : ignore_merges_(ignore_merges) {
  std::int64_t end = 0;
  for (const auto& [token, id] : vocabulary) {
    if (id < 0 || id > kMaxId)
      throw ArchiveError(c10::str("vocabulary: '", token, "': expected an id, found ", id));
    end = std::max(end, id + 1);
  }
  bytes_.resize(static_cast<std::size_t>(end));
  known_.resize(static_cast<std::size_t>(end));
  for (const auto& [token, id] : vocabulary) {
    const auto place = static_cast<std::size_t>(id);
    if (known_[place])
      throw ArchiveError(c10::str("vocabulary: '", token, "' is the second token of id ", id));
    // A token with other characters can't come from text; it is decoded as it stands.
    bytes_[place] = byte_level_bytes(token).value_or(token);
    known_[place] = true;
  }
  ids_.reserve(vocabulary.size());
  for (const auto& [token, id] : vocabulary) {
    if (byte_level_bytes(token)) ids_.emplace(bytes_[static_cast<std::size_t>(id)], id);
  }
  merges_.reserve(merges.size());
  const auto token_id = [&](const std::string& token, const std::string& of) {
    const auto found = vocabulary.find(token);
    if (found == vocabulary.end())
      throw ArchiveError(c10::str("merges: '", of, "': '", token, "' is not in the vocabulary"));
    return found->second;
  };
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const std::string name = left + " " + right;
    const std::uint64_t key = pair_key(token_id(left, name), token_id(right, name));
    merges_.insert_or_assign(key,
                             Merge{static_cast<std::int64_t>(rank), token_id(left + right, name)});
  }
}

const BytePairModel::Merge* BytePairModel::merge_of(std::int64_t left, std::int64_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

const std::string* BytePairModel::bytes_of(std::int64_t id) const {
  const bool known = id >= 0 && id < end_id() && known_[static_cast<std::size_t>(id)];
  return known ? &bytes_[static_cast<std::size_t>(id)] : nullptr;
}

std::optional<std::int64_t> BytePairModel::id_of(std::string_view bytes) const {
  const auto found = ids_.find(bytes);
  if (found == ids_.end()) return {};
  return found->second;
}

void BytePairModel::encode(std::string_view piece, std::vector<std::int64_t>& ids) const {
  if (ignore_merges_) {
    if (const auto whole = id_of(piece)) {
      ids.push_back(*whole);
      return;
    }
  }

  struct Symbol {
    std::int64_t id;  // -1: merged into the one before
    std::int64_t before, behind;
  };

  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (std::size_t i = 0; i < piece.size(); ++i) {
    const auto byte = id_of(piece.substr(i, 1));
    const auto place = static_cast<std::int64_t>(symbols.size());
    if (byte) symbols.push_back({*byte, place - 1, place + 1});
  }
  const auto count = static_cast<std::int64_t>(symbols.size());
  const auto at = [&](std::int64_t place) -> Symbol& {
    return symbols[static_cast<std::size_t>(place)];
  };
  // rank, place of the left part, both parts' ids: out of date once one of them has changed
  using Candidate = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t>;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> candidates;
  const auto consider = [&](std::int64_t left) {
    if (left < 0 || at(left).behind >= count) return;
    const std::int64_t a = at(left).id, b = at(at(left).behind).id;
    if (const Merge* merge = merge_of(a, b)) candidates.emplace(merge->rank, left, a, b);
  };
  for (std::int64_t i = 0; i < count; ++i) consider(i);
  while (!candidates.empty()) {
    const auto [rank, left, a, b] = candidates.top();
    candidates.pop();
    const std::int64_t right = at(left).behind;
    if (at(left).id != a || right >= count || at(right).id != b) continue;
    at(left).id = merge_of(a, b)->id;
    at(left).behind = at(right).behind;
    at(right).id = -1;
    if (at(left).behind < count) at(at(left).behind).before = left;
    consider(at(left).before);
    consider(left);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids.push_back(symbol.id);
  }
}

}  // namespace libvar
