#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace libvar {

/// U+FFFD, which stands for what is no character.
inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

/// True where the bytes are well-formed UTF-8 (Unicode, table 3-7): no overlong forms, surrogates
/// or cut characters.
bool is_utf8(std::string_view bytes);

/// The bytes as UTF-8, U+FFFD in place of each longest run of bytes that begins no character or is
/// the beginning of one (Unicode, "substitution of maximal subparts"; what Rust and Python do).
std::string replace_invalid_utf8(std::string_view bytes);

/// Bytes at the end that are the beginning of a character and not yet one; 0 where there are none.
std::size_t cut_character_length(std::string_view bytes);

}  // namespace libvar
