#include "libvar/error.h"
#include "text/tokenizer.h"
#include "text/tokenizers.h"

namespace libvar {

std::unique_ptr<Tokenizer> load_tokenizer(const std::map<std::string, std::string>& files) {
  if (files.count("tokenizer.model") != 0) return load_sentencepiece_tokenizer(files);
  if (files.count("tokenizer.json") != 0 || files.count("vocab.json") != 0)
    return load_byte_pair_tokenizer(files);
  throw ArchiveError(
      "the tokenizer is missing: expected tokenizer.model, tokenizer.json, or vocab.json with "
      "merges.txt; found none of them");
}

}  // namespace libvar
