#pragma once

#include <map>
#include <memory>
#include <string>

#include "text/tokenizer.h"

namespace libvar {

/// Files of a checkpoint by name.
using CheckpointTexts = std::map<std::string, std::string>;

// The kinds of tokenizer, for load_tokenizer. They throw ArchiveError.

/// tokenizer.model, a sentencepiece model.
std::unique_ptr<Tokenizer> load_sentencepiece_tokenizer(const CheckpointTexts& files);

/// tokenizer.json, or vocab.json and merges.txt: byte-level byte pair encoding.
std::unique_ptr<Tokenizer> load_byte_pair_tokenizer(const CheckpointTexts& files);

}  // namespace libvar
