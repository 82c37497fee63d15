#include "decoder/sequence.h"

#include <ATen/ops/tensor.h>
#include <c10/util/StringUtil.h>

#include <algorithm>

#include "libvar/error.h"

namespace libvar {

Sequence expand_image_tokens(const std::vector<std::int64_t>& ids, std::int64_t image_token,
                             std::int64_t visual_tokens_per_image) {
  Sequence result;
  for (const std::int64_t id : ids) {
    if (id != image_token) {
      result.ids.push_back(id);
      continue;
    }
    const auto begin = static_cast<std::int64_t>(result.ids.size());
    result.ids.insert(result.ids.end(), static_cast<std::size_t>(visual_tokens_per_image),
                      image_token);
    result.visual_spans.emplace_back(begin, begin + visual_tokens_per_image);
  }
  return result;
}

at::Tensor embed_sequence(const Decoder& decoder, const Sequence& sequence,
                          const at::Tensor& features) {
  const auto images = static_cast<std::int64_t>(sequence.visual_spans.size());
  if ((features.defined() ? features.size(0) : 0) != images) {
    throw InputError(c10::str("prompt: ", images, " image places, but features of ",
                              features.defined() ? features.size(0) : 0, " images"));
  }
  // The image token may have no row in the table (kNoImageToken); any row does, it is overwritten.
  std::vector<std::int64_t> ids = sequence.ids;
  for (const auto& [begin, end] : sequence.visual_spans)
    std::fill(ids.begin() + begin, ids.begin() + end, 0);
  at::Tensor result = decoder.embed(at::tensor(ids, at::kLong));
  for (std::size_t i = 0; i < sequence.visual_spans.size(); ++i) {
    const auto& [begin, end] = sequence.visual_spans[i];
    const at::Tensor image = features.select(0, static_cast<std::int64_t>(i));
    if (image.size(0) != end - begin) {
      throw InputError(c10::str("prompt: image ", i, " has ", end - begin, " places, but ",
                                image.size(0), " features"));
    }
    result.narrow(0, begin, end - begin).copy_(image);
  }
  return result.unsqueeze(0);
}

}  // namespace libvar
