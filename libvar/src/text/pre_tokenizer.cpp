#include "text/pre_tokenizer.h"

#include <c10/util/StringUtil.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <utf8proc.h>

#include <cstdlib>
#include <utility>

#include "libvar/error.h"

namespace libvar {

namespace {

constexpr std::string_view kWhiteSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}"
    "\\x{205f}\\x{3000}";

/// The pattern with \s and \S spelt out.
std::string spell_white_space(const std::string& pattern) {
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c != '\\' || i + 1 == pattern.size()) {
      if (c == '[') in_class = true;
      if (c == ']') in_class = false;
      out += c;
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out.append(in_class ? "" : "[").append(kWhiteSpace).append(in_class ? "" : "]");
    } else if (escaped == 'S' && !in_class) {
      out.append("[^").append(kWhiteSpace).append("]");
    } else {
      out.append({c, escaped});
    }
  }
  return out;
}

std::string message_of(int code) {
  char text[256];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof(text));
  return text;
}

}  // namespace

std::string normalise_nfc(std::string_view text) {
  utf8proc_uint8_t* out = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &out,
                   static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(out, &std::free);
  if (size < 0)
    throw InputError(c10::str("tokenizer: the text is not UTF-8: ", utf8proc_errmsg(size)));
  return {reinterpret_cast<const char*>(out), static_cast<std::size_t>(size)};
}

struct PieceSplitter::Code {
  explicit Code(const std::string& pattern) {
    int error = 0;
    PCRE2_SIZE where = 0;
    const std::string spelt = spell_white_space(pattern);
    code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(spelt.data()), spelt.size(),
                             PCRE2_UTF | PCRE2_UCP, &error, &where, nullptr));
    if (code == nullptr) {
      throw ArchiveError(c10::str("pattern '", pattern, "' does not compile: ", message_of(error)));
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without it matching is slower, no more
  }

  std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)> code{nullptr, &pcre2_code_free};
};

PieceSplitter::PieceSplitter(const std::string& pattern)
    : code_(std::make_unique<const Code>(pattern)) {}

PieceSplitter::~PieceSplitter() = default;

std::vector<std::string_view> PieceSplitter::split(std::string_view text) const {
  const pcre2_code* code = code_->code.get();
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> match(
      pcre2_match_data_create_from_pattern(code, nullptr), &pcre2_match_data_free);
  std::vector<std::string_view> pieces;
  const auto add = [&](std::size_t begin, std::size_t end) {
    if (end > begin) pieces.push_back(text.substr(begin, end - begin));
  };
  std::size_t done = 0, from = 0;
  std::uint32_t checked = 0;  // the text's UTF-8 is checked once
  while (from < text.size()) {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int found = pcre2_match(code, subject, text.size(), from, checked, match.get(), nullptr);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code, subject, text.size(), from, checked | PCRE2_NO_JIT, match.get(),
                          nullptr);
    }
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0)
      throw InputError(c10::str("tokenizer: the text can't be split: ", message_of(found)));
    checked = PCRE2_NO_UTF_CHECK;
    const PCRE2_SIZE* place = pcre2_get_ovector_pointer(match.get());
    if (place[1] <= place[0]) throw ArchiveError("tokenizer: its pattern matches an empty text");
    add(done, place[0]);
    add(place[0], place[1]);
    done = from = place[1];
  }
  add(done, text.size());
  return pieces;
}

}  // namespace libvar
