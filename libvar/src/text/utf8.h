#pragma once

#include <string_view>

namespace libvar {

/// U+FFFD, which stands for what is no character.
inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";

/// True where the bytes are well-formed UTF-8 (Unicode, table 3-7): no overlong forms, surrogates
/// or cut characters.
bool is_utf8(std::string_view bytes);

}  // namespace libvar
