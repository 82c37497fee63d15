#include "decoder/sequence.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <c10/util/StringUtil.h>

#include <algorithm>

#include "libvar/error.h"

namespace libvar {

Sequence expand_image_tokens(const std::vector<std::int64_t>& ids, std::int64_t image_token,
                             const std::vector<VisualSize>& images) {
  Sequence result;
  const auto places = std::count(ids.begin(), ids.end(), image_token);
  if (places != static_cast<std::ptrdiff_t>(images.size())) {
    throw InputError(c10::str("prompt: ", places, " image tokens, but ", images.size(), " images"));
  }
  result.visual_sizes = images;
  for (const std::int64_t id : ids) {
    if (id != image_token) {
      result.ids.push_back(id);
      continue;
    }
    const auto begin = static_cast<std::int64_t>(result.ids.size());
    const std::int64_t tokens = images[result.visual_spans.size()].tokens;
    result.ids.insert(result.ids.end(), static_cast<std::size_t>(tokens), image_token);
    result.visual_spans.emplace_back(begin, begin + tokens);
  }
  return result;
}

at::Tensor embed_sequence(const Decoder& decoder, const Sequence& sequence,
                          const std::vector<at::Tensor>& features) {
  const std::size_t images = sequence.visual_spans.size();
  if (features.size() != images) {
    throw InputError(c10::str("prompt: ", images, " image places, but features of ",
                              features.size(), " images"));
  }
  // The image token may have no row in the table (kNoImageToken); any row does, it is overwritten.
  std::vector<std::int64_t> ids = sequence.ids;
  for (const auto& [begin, end] : sequence.visual_spans)
    std::fill(ids.begin() + begin, ids.begin() + end, 0);
  at::Tensor result = decoder.embed(at::tensor(ids, at::kLong));
  for (std::size_t i = 0; i < images; ++i) {
    const auto& [begin, end] = sequence.visual_spans[i];
    const at::Tensor& image = features[i];
    if (image.size(0) != end - begin) {
      throw InputError(c10::str("prompt: image ", i, " has ", end - begin, " places, but ",
                                image.size(0), " features"));
    }
    result.narrow(0, begin, end - begin).copy_(image);
  }
  return result.unsqueeze(0);
}

at::Tensor three_axis_positions(const Sequence& sequence, std::int64_t begin) {
  const auto length = static_cast<std::int64_t>(sequence.ids.size());
  at::Tensor out = at::empty({3, length}, at::kLong);
  auto position = out.accessor<std::int64_t, 2>();
  std::int64_t next = begin, i = 0;
  const auto count_to = [&](std::int64_t end) {
    for (; i < end; ++i, ++next) position[0][i] = position[1][i] = position[2][i] = next;
  };
  for (std::size_t image = 0; image < sequence.visual_spans.size(); ++image) {
    const auto [first, end] = sequence.visual_spans[image];
    const VisualSize& size = sequence.visual_sizes[image];
    count_to(first);
    for (; i < end; ++i) {
      position[0][i] = next;
      position[1][i] = next + (i - first) / size.columns;
      position[2][i] = next + (i - first) % size.columns;
    }
    next += std::max(size.rows, size.columns);
  }
  count_to(length);
  return out;
}

}  // namespace libvar
