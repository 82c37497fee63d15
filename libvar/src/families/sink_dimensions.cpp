#include "families/sink_dimensions.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <set>

#include "libvar/error.h"

namespace libvar {
namespace {

struct Known {
  std::int64_t hidden_size, intermediate_size, num_layers, num_kv_heads;
  std::int64_t least_vocab, most_vocab;  // added tokens and padding differ between models
  std::vector<std::int64_t> dims;
  const char* source;
};

const std::array<Known, 5>& known_models() {
  static const std::array<Known, 5> table{{
      {4096,
       11008,
       32,
       32,
       32000,
       32064,
       {1415, 2533},
       "known for Llama-2-7B and Vicuna-7B (the authors' code of arXiv:2503.03321)"},
      {5120,
       13824,
       40,
       40,
       32000,
       32064,
       {2100, 4743},
       "known for Llama-2-13B and Vicuna-13B (the authors' code of arXiv:2503.03321)"},
      {3584,
       18944,
       28,
       4,
       151643,
       152064,
       {458, 2570},
       "published for Qwen2-7B; confirm with `var sinks discover`"},
      {1536,
       8960,
       28,
       2,
       151643,
       151936,
       {1073, 534, 940},
       "published for Qwen2-VL-2B; confirm with `var sinks discover`"},
      {4096,
       14336,
       32,
       8,
       128256,
       128320,
       {788, 1384, 4062},
       "published for Llama-3-8B; confirm with `var sinks discover`"},
  }};
  return table;
}

}  // namespace

void check_sink_dimensions(const std::vector<std::int64_t>& dims, std::int64_t hidden_size) {
  const std::set<std::int64_t> distinct(dims.begin(), dims.end());
  if (dims.empty() || dims.size() > kMaxSinkDims || distinct.size() != dims.size()) {
    throw ConfigError(c10::str("sink_dims: expected 1 to ", kMaxSinkDims,
                               " different dimensions, found ", dims.size(),
                               distinct.size() != dims.size() ? " with repetitions" : ""));
  }
  if (*distinct.begin() < 0 || *distinct.rbegin() >= hidden_size) {
    throw ConfigError(c10::str("sink_dims: expected dimensions in [0, ", hidden_size,
                               "), the hidden size, found ",
                               *distinct.begin() < 0 ? *distinct.begin() : *distinct.rbegin()));
  }
}

std::optional<SinkDimensions> known_sink_dimensions(const DecoderConfig& decoder) {
  for (const Known& known : known_models()) {
    if (decoder.hidden_size == known.hidden_size &&
        decoder.intermediate_size == known.intermediate_size &&
        decoder.num_layers == known.num_layers && decoder.num_kv_heads == known.num_kv_heads &&
        decoder.vocab_size >= known.least_vocab && decoder.vocab_size <= known.most_vocab) {
      return SinkDimensions{known.dims, known.source};
    }
  }
  return {};
}

}  // namespace libvar
