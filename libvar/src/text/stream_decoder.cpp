#include "text/tokenizer.h"

namespace libvar {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

std::string StreamDecoder::push(std::int64_t id) {
  ids_.push_back(id);
  return text_up_to(tokenizer_.certain(ids_));
}

std::string StreamDecoder::finish() {
  return text_up_to(ids_.size());
}

std::string StreamDecoder::text_up_to(std::size_t count) {
  if (count <= decoded_ids_) return {};
  const std::string text =
      tokenizer_.decode({ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(count)});
  decoded_ids_ = count;
  std::string piece = text.size() > given_bytes_ ? text.substr(given_bytes_) : std::string();
  given_bytes_ += piece.size();
  return piece;
}

}  // namespace libvar
