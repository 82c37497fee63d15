#include "text/utf8.h"

#include <algorithm>

namespace libvar {
namespace {

/// The first character of some bytes, or what there is of it.
struct Character {
  std::size_t length = 0;  ///< bytes that belong together, at least 1
  bool whole = false;
  bool cut = false;  ///< the bytes end before the character does
};

Character first_character(std::string_view bytes) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {1, true};
  if (lead < 0xc2 || lead > 0xf4) return {1};
  const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == bytes.size()) return {i, false, true};
    // The second byte leaves out overlong forms, surrogates and what lies past U+10FFFF.
    const unsigned least = i > 1 ? 0x80 : lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const unsigned most = i > 1 ? 0xbf : lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i) < least || byte(i) > most) return {i};
  }
  return {length, true};
}

}  // namespace

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const Character character = first_character(bytes);
    if (!character.whole) return false;
    bytes.remove_prefix(character.length);
  }
  return true;
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const Character character = first_character(bytes);
    out += character.whole ? bytes.substr(0, character.length) : kReplacementCharacter;
    bytes.remove_prefix(character.length);
  }
  return out;
}

std::size_t cut_character_length(std::string_view bytes) {
  for (std::size_t length = std::min<std::size_t>(3, bytes.size()); length > 0; --length) {
    const Character character = first_character(bytes.substr(bytes.size() - length));
    if (character.cut) return length;
  }
  return 0;
}

}  // namespace libvar
