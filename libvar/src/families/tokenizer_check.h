#pragma once

#include "families/family.h"
#include "text/tokenizer.h"

namespace libvar {

/// Holds a tokenizer to the configuration that it came with.
/// @throws ArchiveError  it gives ids beyond the vocabulary, or its image token, if it has one, is
///                       not image_token_id
void check_tokenizer(const Tokenizer& tokenizer, const ModelConfig& config);

}  // namespace libvar
