#include "image/resize.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "image/image.h"
#include "libvar/error.h"

// Pillow's arithmetic (src/libImaging/Resample.c), reimplemented: weights in double, normalised,
// then as integers with 22 fraction bits; 8 bits between the passes; no pass along an unchanged
// side. Versions differ in the order of the passes only. Compiled without contraction of a * b + c,
// which would change the weights' last bits.

namespace libvar {
namespace {

constexpr int kFractionBits = 22;
constexpr std::int32_t kHalf = 1 << (kFractionBits - 1);
constexpr int kChannels = 3;

double bicubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((kA + 2.0) * x - (kA + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * kA;
  return 0.0;
}

/// Which inputs each output of a window reads, and with what weights.
struct Taps {
  std::vector<std::int64_t> begin, count;  ///< of each output
  std::vector<std::int32_t> weights;       ///< `stride` for each output, `count` of them in use
  std::int64_t stride = 0;

  std::int64_t first() const { return *std::min_element(begin.begin(), begin.end()); }

  std::int64_t last() const {
    std::int64_t end = 0;
    for (std::size_t i = 0; i < begin.size(); ++i) end = std::max(end, begin[i] + count[i]);
    return end;
  }
};

Taps make_taps(std::int64_t in_size, std::int64_t out_size, std::int64_t out_begin,
               std::int64_t out_count) {
  Taps taps;
  if (in_size == out_size) {  // no pass: each output is its input
    taps.count.assign(out_count, 1);
    for (std::int64_t i = 0; i < out_count; ++i) taps.begin.push_back(out_begin + i);
    return taps;
  }
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = 2.0 * filter_scale;
  const double inverse = 1.0 / filter_scale;
  taps.stride = static_cast<std::int64_t>(std::ceil(support)) * 2 + 1;
  taps.weights.resize(out_count * taps.stride);
  std::vector<double> exact(taps.stride);
  for (std::int64_t i = 0; i < out_count; ++i) {
    const double center = (static_cast<double>(out_begin + i) + 0.5) * scale;
    // Cut off towards zero, as Pillow does. NOLINTBEGIN(bugprone-incorrect-roundings)
    const auto begin = std::max<std::int64_t>(0, static_cast<std::int64_t>(center - support + 0.5));
    const auto end = std::min(in_size, static_cast<std::int64_t>(center + support + 0.5));
    // NOLINTEND(bugprone-incorrect-roundings)
    const std::int64_t count = end - begin;
    double sum = 0.0;
    for (std::int64_t x = 0; x < count; ++x) {
      exact[x] = bicubic((static_cast<double>(x + begin) - center + 0.5) * inverse);
      sum += exact[x];
    }
    for (std::int64_t x = 0; x < count; ++x) {
      const double weight = (sum != 0.0 ? exact[x] / sum : exact[x]) * (1 << kFractionBits);
      taps.weights[i * taps.stride + x] =
          static_cast<std::int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    taps.begin.push_back(begin);
    taps.count.push_back(count);
  }
  return taps;
}

std::uint8_t rounded(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

/// One row of the canvas through the horizontal pass; `row` starts at the canvas' left edge.
void resize_row(const std::uint8_t* row, const Taps& taps, std::uint8_t* out) {
  const std::int64_t outputs = static_cast<std::int64_t>(taps.begin.size());
  if (taps.stride == 0) {
    std::memcpy(out, row + taps.begin.front() * kChannels, outputs * kChannels);
    return;
  }
  for (std::int64_t i = 0; i < outputs; ++i) {
    const std::int32_t* weights = taps.weights.data() + i * taps.stride;
    const std::uint8_t* pixel = row + taps.begin[i] * kChannels;
    std::int32_t red = kHalf, green = kHalf, blue = kHalf;
    for (std::int64_t x = 0; x < taps.count[i]; ++x, pixel += kChannels) {
      red += pixel[0] * weights[x];
      green += pixel[1] * weights[x];
      blue += pixel[2] * weights[x];
    }
    out[i * kChannels] = rounded(red);
    out[i * kChannels + 1] = rounded(green);
    out[i * kChannels + 2] = rounded(blue);
  }
}

/// Gives the canvas' rows. Rows are whole, so a row beside a narrow picture is put together in a
/// buffer.
class CanvasRows {
 public:
  explicit CanvasRows(const Canvas& canvas) : canvas_(canvas) {
    if (canvas.width == canvas.picture_width && canvas.height == canvas.picture_height) return;
    row_.resize(canvas.width * kChannels);
    for (std::size_t i = 0; i < row_.size(); ++i) row_[i] = canvas.colour[i % kChannels];
    background_ = row_;
  }

  bool is_background(std::int64_t y) const {
    return y < canvas_.top || y >= canvas_.top + canvas_.picture_height;
  }

  const std::uint8_t* row(std::int64_t y) {
    if (is_background(y)) return background_.data();
    const std::int64_t row_bytes = canvas_.picture_width * kChannels;
    const std::uint8_t* pixels = canvas_.pixels + (y - canvas_.top) * row_bytes;
    if (canvas_.width == canvas_.picture_width) return pixels;
    std::memcpy(row_.data() + canvas_.left * kChannels, pixels, row_bytes);
    return row_.data();
  }

 private:
  const Canvas& canvas_;
  std::vector<std::uint8_t> row_, background_;
};

/// Row i of the vertical pass' result, sums.size() bytes. row_at(y) gives row y of its input.
template <typename RowAt>
void blend_rows(const Taps& lines, std::int64_t i, const RowAt& row_at,
                std::vector<std::int32_t>& sums, std::uint8_t* out) {
  const std::size_t row_bytes = sums.size();
  std::int32_t* sum = sums.data();  // a byte stored to `out` could change the vector's own pointer
  if (lines.stride == 0) {
    std::memcpy(out, row_at(lines.begin[i]), row_bytes);
    return;
  }
  std::fill(sums.begin(), sums.end(), kHalf);
  for (std::int64_t y = 0; y < lines.count[i]; ++y) {
    const std::uint8_t* row = row_at(lines.begin[i] + y);
    const std::int32_t weight = lines.weights[i * lines.stride + y];
    for (std::size_t x = 0; x < row_bytes; ++x) sum[x] += row[x] * weight;
  }
  for (std::size_t x = 0; x < row_bytes; ++x) out[x] = rounded(sum[x]);
}

/// The rows that the vertical pass reads, after the horizontal one.
std::vector<std::uint8_t> horizontal_pass(const Canvas& canvas, const Taps& columns,
                                          std::int64_t begin, std::int64_t end) {
  const std::int64_t row_bytes = static_cast<std::int64_t>(columns.begin.size()) * kChannels;
  std::vector<std::uint8_t> rows((end - begin) * row_bytes), background;
  CanvasRows source(canvas);
  for (std::int64_t y = begin; y < end; ++y) {
    std::uint8_t* out = rows.data() + (y - begin) * row_bytes;
    if (!source.is_background(y)) {
      resize_row(source.row(y), columns, out);
      continue;
    }
    if (background.empty()) {
      background.resize(row_bytes);
      resize_row(source.row(y), columns, background.data());
    }
    std::memcpy(out, background.data(), row_bytes);
  }
  return rows;
}

void horizontal_then_vertical(const Canvas& canvas, const Taps& columns, const Taps& lines,
                              std::uint8_t* out) {
  const std::int64_t begin = lines.first();
  const std::vector<std::uint8_t> rows = horizontal_pass(canvas, columns, begin, lines.last());
  const std::int64_t row_bytes = static_cast<std::int64_t>(columns.begin.size()) * kChannels;
  const auto row_at = [&](std::int64_t y) { return rows.data() + (y - begin) * row_bytes; };
  std::vector<std::int32_t> sums(row_bytes);
  for (std::size_t i = 0; i < lines.begin.size(); ++i, out += row_bytes)
    blend_rows(lines, static_cast<std::int64_t>(i), row_at, sums, out);
}

void vertical_then_horizontal(const Canvas& canvas, const Taps& columns, const Taps& lines,
                              std::uint8_t* out) {
  const std::int64_t begin = columns.first() * kChannels, end = columns.last() * kChannels;
  const std::int64_t row_bytes = static_cast<std::int64_t>(columns.begin.size()) * kChannels;
  CanvasRows source(canvas);
  const auto row_at = [&](std::int64_t y) { return source.row(y) + begin; };
  std::vector<std::int32_t> sums(end - begin);
  std::vector<std::uint8_t> row(end);  // starts at the canvas' left edge, as resize_row expects
  for (std::size_t i = 0; i < lines.begin.size(); ++i, out += row_bytes) {
    blend_rows(lines, static_cast<std::int64_t>(i), row_at, sums, row.data() + begin);
    resize_row(row.data(), columns, out);
  }
}

/// Source: ImagingResampleInner of Pillow 13.0.0; the differences have a sign.
bool is_vertical_first(const Canvas& canvas, std::int64_t height, std::int64_t width,
                       ResizePassOrder order) {
  const std::int64_t rows_lost = canvas.height - height, columns_lost = canvas.width - width;
  return order == ResizePassOrder::kPillow13 && rows_lost > 0 && rows_lost > 2 * columns_lost;
}

}  // namespace

void resize_window(const Canvas& canvas, std::int64_t height, std::int64_t width,
                   const Window& window, ResizePassOrder order, std::uint8_t* out) {
  const Taps columns = make_taps(canvas.width, width, window.left, window.width);
  const Taps lines = make_taps(canvas.height, height, window.top, window.height);
  if (is_vertical_first(canvas, height, width, order)) {
    vertical_then_horizontal(canvas, columns, lines, out);
  } else {
    horizontal_then_vertical(canvas, columns, lines, out);
  }
}

at::Tensor resize_bicubic(const at::Tensor& image, std::int64_t height, std::int64_t width,
                          ResizePassOrder order) {
  TORCH_CHECK_TYPE(image.scalar_type() == at::kByte, "resize_bicubic: expected uint8, got ",
                   image.scalar_type());
  TORCH_CHECK_VALUE(
      image.dim() == 3 && image.size(2) == kChannels && image.size(0) > 0 && image.size(1) > 0,
      "resize_bicubic: expected image [H, W, 3], got ", image.sizes());
  TORCH_CHECK_VALUE(height > 0 && width > 0, "resize_bicubic: expected a size above 0, got ",
                    height, " x ", width);
  const at::Tensor source = image.contiguous();
  at::Tensor out = at::empty({height, width, kChannels}, at::kByte);
  Canvas canvas;
  canvas.pixels = source.const_data_ptr<std::uint8_t>();
  canvas.height = canvas.picture_height = source.size(0);
  canvas.width = canvas.picture_width = source.size(1);
  resize_window(canvas, height, width, {0, 0, height, width}, order,
                out.mutable_data_ptr<std::uint8_t>());
  return out;
}

}  // namespace libvar
