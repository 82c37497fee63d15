#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace libvar {

/// Ids of a prompt, with one `image_token` at each <image>.
///
/// The text between the places is tokenised piece by piece, which is what tokenizer.json does at
/// special tokens and the original code at its placeholders; so vocabularies with and without an
/// image token give the same ids.
std::vector<std::int64_t> encode_prompt(const Tokenizer& tokenizer, std::string_view prompt,
                                        bool add_bos, std::int64_t image_token);

}  // namespace libvar
