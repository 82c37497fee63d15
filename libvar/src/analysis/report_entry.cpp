#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <c10/util/StringUtil.h>
#include <zlib.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <opencv2/imgcodecs.hpp>

#include "analysis/base64.h"
#include "image/image.h"
#include "libvar/error.h"
#include "libvar/inspection.h"
#include "libvar/report.h"

namespace libvar {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kLongestSide = 1280;  // of a picture in the page
constexpr int kJpegQuality = 88;

/// The elements of a tensor, zlib-compressed, in base64.
std::string packed(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  const auto size = static_cast<uLong>(values.nbytes());
  std::string out(compressBound(size), '\0');
  uLongf length = out.size();
  const int code = compress2(reinterpret_cast<Bytef*>(out.data()), &length,
                             static_cast<const Bytef*>(values.const_data_ptr()), size, 6);
  if (code != Z_OK) throw Error(c10::str("report: zlib can't compress: ", zError(code)));
  return base64(std::string_view(out.data(), length));
}

ordered_json picture_json(const ImageSource& source, const InspectedImage& image,
                          bool exif_rotation) {
  at::Tensor picture = to_tensor(source, exif_rotation);
  const std::int64_t longest = std::max(image.width, image.height);
  if (longest > kLongestSide) {
    const auto scaled = [&](std::int64_t side) {
      return std::max<std::int64_t>(1, side * kLongestSide / longest);
    };
    picture = resize_bicubic(picture, scaled(image.height), scaled(image.width),
                             ResizePassOrder::kHorizontalFirst);
  }
  picture = picture.flip(2).contiguous();  // OpenCV's order is blue, green, red
  const cv::Mat pixels(static_cast<int>(picture.size(0)), static_cast<int>(picture.size(1)),
                       CV_8UC3, picture.mutable_data_ptr());
  std::vector<std::uint8_t> jpeg;
  cv::imencode(".jpg", pixels, jpeg, {cv::IMWRITE_JPEG_QUALITY, kJpegQuality});
  auto boxes = ordered_json::array();
  for (const TokenBox& box : image.boxes) {
    const auto rounded = [](double value) { return std::round(value * 100) / 100; };
    boxes.push_back({rounded(box.left), rounded(box.top), rounded(box.right), rounded(box.bottom),
                     box.thumbnail ? 1 : 0});
  }
  return {{"width", image.width},
          {"height", image.height},
          {"uri", "data:image/jpeg;base64," +
                      base64({reinterpret_cast<const char*>(jpeg.data()), jpeg.size()})},
          {"begin", image.positions.first},
          {"boxes", std::move(boxes)}};
}

/// The text tokens behind the first image, in the order they were fed, and the last token of the
/// answer, which was not fed where the length ended it.
ordered_json words_json(const Inspection& found) {
  auto words = ordered_json::array();
  const auto prompt = static_cast<std::int64_t>(found.answer.prompt_tokens.size());
  for (const std::int64_t row : found.rows) {
    words.push_back({{"text", found.pieces[static_cast<std::size_t>(row)]},
                     {"position", row},
                     {"answer", row >= prompt}});
  }
  std::string fed;
  for (const ordered_json& word : words) {
    if (word.at("answer")) fed += word.at("text");
  }
  if (found.tokens.size() < found.answer.prompt_tokens.size() + found.answer.tokens.size()) {
    // An answer's text may be without the white space that it begins with.
    const auto trimmed = [](const std::string& text) {
      return text.substr(std::min(text.find_first_not_of(" \n"), text.size()));
    };
    const std::string text = trimmed(found.answer.text);
    const std::string rest = text.substr(std::min(trimmed(fed).size(), text.size()));
    words.push_back({{"text", rest}, {"position", nullptr}, {"answer", true}});
  }
  return words;
}

/// Mean over the heads, then each head of the layers that keep them. [R, 1 or 1 + H, N]
at::Tensor layer_attention(const at::Tensor& mean, const at::Tensor& heads,
                           const std::vector<std::int64_t>& head_layers, std::int64_t layer) {
  const at::Tensor all = mean[layer].unsqueeze(1);
  const auto at = std::find(head_layers.begin(), head_layers.end(), layer);
  if (at == head_layers.end()) return all;
  return at::cat({all, heads[at - head_layers.begin()].transpose(0, 1)}, 1);
}

/// One run: for each layer the attention of every row and head to the visual tokens, and its sums.
ordered_json run_json(const Inspection& found, const at::Tensor& visual, float tau) {
  auto layers = ordered_json::array();
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    const at::Tensor before =
        layer_attention(found.attention, found.head_attention, found.head_layers, layer);
    const at::Tensor after =
        layer_attention(found.redistributed, found.head_redistributed, found.head_layers, layer);
    const at::Tensor shown = after.index_select(-1, visual);  // [R, 1 + H, V]
    const at::Tensor most = shown.amax(-1);
    const at::Tensor codes =
        (shown / most.unsqueeze(-1).clamp_min(1e-30)).sqrt().mul(255).round().to(at::kByte);
    const at::Tensor sink = found.sink_scores[layer].index_select(0, visual) >= tau;  // [V]
    const auto sums = [&](const at::Tensor& attention) {
      const at::Tensor part = attention.index_select(-1, visual);
      const at::Tensor sinks = (part * sink).sum(-1);
      return at::stack({sinks, part.sum(-1) - sinks}, -1);  // [R, 1 + H, 2]
    };
    layers.push_back({{"heads", shown.size(1) - 1},
                      {"codes", packed(codes)},
                      {"most", packed(most)},
                      {"before", packed(sums(before))},
                      {"after", packed(sums(after))},
                      {"phi", packed(found.sink_scores[layer].index_select(0, visual))},
                      {"ratio", packed(found.visual_ratio[layer])},
                      {"mass", packed(found.visual_mass[layer])},
                      {"selected", packed(found.selected[layer].to(at::kByte))}});
  }
  return {{"answer", found.answer.text},
          {"finish", to_string(found.answer.finish_reason)},
          {"words", words_json(found)},
          {"layers", std::move(layers)}};
}

std::vector<std::int64_t> kept_layers(const ReportOptions& options, std::int64_t num_layers) {
  const std::int64_t first = options.head_layers.first, last = options.head_layers.second < 0
                                                                   ? num_layers - 1
                                                                   : options.head_layers.second;
  if (first < 0 || first > last || last >= num_layers) {
    throw ConfigError(c10::str("ReportOptions: head_layers: expected [first, last] in [0, ",
                               num_layers - 1, "], found [", first, ", ", last, "]"));
  }
  std::vector<std::int64_t> out(static_cast<std::size_t>(last - first + 1));
  std::iota(out.begin(), out.end(), first);
  return out;
}

}  // namespace

std::string report_entry(const std::shared_ptr<const Model>& model, const Request& request,
                         const ReportOptions& options) {
  if (!request.var.enabled)
    throw ConfigError("report: expected VAR to be on: the page shows it beside VAR off");
  InspectOptions keep;
  keep.head_layers = kept_layers(options, model->num_layers());
  Request plain = request;
  plain.var.enabled = false;
  const Inspection off = inspect(model, plain, keep), on = inspect(model, request, keep);

  auto pictures = ordered_json::array();
  std::vector<at::Tensor> ranges;
  for (std::size_t i = 0; i < on.images.size(); ++i) {
    pictures.push_back(picture_json(request.images[i], on.images[i], request.exif_rotation));
    ranges.push_back(at::arange(on.images[i].positions.first, on.images[i].positions.second));
  }
  const at::Tensor visual = at::cat(ranges);
  const VarParams& var = on.answer.var.params;
  const ordered_json entry = {{"name", options.name},
                              {"question", request.raw_prompt.value_or(request.question)},
                              {"var",
                               {{"tau", var.tau},
                                {"rho", var.rho},
                                {"p", var.p},
                                {"min_visual_mass", var.min_visual_mass},
                                {"first_layer", var.first_layer.value_or(0)}}},
                              {"pictures", std::move(pictures)},
                              {"off", run_json(off, visual, var.tau)},
                              {"on", run_json(on, visual, var.tau)}};
  return entry.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace libvar
