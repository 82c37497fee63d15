#include "generate/prompt_ids.h"

#include "text/prompt.h"

namespace libvar {

std::vector<std::int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                                        bool add_bos, std::int64_t image_token) {
  std::vector<std::int64_t> ids;
  std::string_view rest = prompt;
  for (bool first = true;; first = false) {
    const std::size_t place = rest.find(kImagePlaceholder);
    const std::vector<std::int64_t> piece =
        tokenizer.encode(rest.substr(0, place), add_bos && first);
    ids.insert(ids.end(), piece.begin(), piece.end());
    if (place == std::string_view::npos) return ids;
    ids.push_back(image_token);
    rest.remove_prefix(place + kImagePlaceholder.size());
  }
}

}  // namespace libvar
