#include "families/tokenizer_check.h"

#include <c10/util/StringUtil.h>

#include "libvar/error.h"

namespace libvar {

void check_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config) {
  const std::int64_t rows = config.decoder.vocab_size;
  if (tokenizer.size() > rows) {
    throw ArchiveError(c10::str("the tokenizer does not fit the vocabulary: it gives ids up to ",
                                tokenizer.size() - 1, ", config.json: vocab_size is ", rows));
  }
  const auto image = tokenizer.token_id(config.image_token);
  if (image && config.image_token_id && *image != *config.image_token_id) {
    throw ArchiveError(c10::str("the tokenizer does not fit config.json: ", config.image_token,
                                " is ", *image, " in the one, ", *config.image_token_id,
                                " in the other"));
  }
}

}  // namespace libvar
