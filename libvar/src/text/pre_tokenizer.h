#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// Unicode normalisation form C.
/// @throws InputError  the text is not UTF-8
std::string normalise_nfc(std::string_view text);

/// Cuts text into the matches of a regular expression and what lies between them, as the
/// `tokenizers` library does ("Split", "Isolated").
///
/// White space is Unicode's property White_Space, as there; PCRE2's \s has U+180E too.
class PieceSplitter {
 public:
  /// @throws ArchiveError  it does not compile, or matches an empty text
  explicit PieceSplitter(const std::string& pattern);
  ~PieceSplitter();
  PieceSplitter(const PieceSplitter&) = delete;
  PieceSplitter& operator=(const PieceSplitter&) = delete;

  /// Pieces of `text` (UTF-8), into which they point; none is empty, together they are the text.
  std::vector<std::string_view> split(std::string_view text) const;

 private:
  struct Code;
  std::unique_ptr<const Code> code_;
};

/// The pattern of Qwen2's tokenizer.
inline constexpr const char* kQwen2Pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}"
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The pattern of GPT-2's, which a ByteLevel pre-tokenizer uses by itself.
inline constexpr const char* kGpt2Pattern =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

}  // namespace libvar
