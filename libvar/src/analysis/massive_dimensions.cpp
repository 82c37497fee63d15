#include "analysis/massive_dimensions.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/nanmedian.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "families/sink_dimensions.h"

namespace libvar {
namespace {

constexpr double kLeastTimesMedian = 1000.0;

bool more_than_half(std::int64_t part, std::int64_t all) {
  return 2 * part > all;
}

}  // namespace

MassiveDimensions::MassiveDimensions(std::int64_t num_layers)
    : layers_(static_cast<std::size_t>(num_layers)) {}

void MassiveDimensions::add(std::int64_t layer, const at::Tensor& hidden) {
  LayerSums& sums = layers_.at(static_cast<std::size_t>(layer));
  const at::Tensor magnitudes = hidden.select(0, 0).to(at::kFloat).abs();
  const at::Tensor finite = at::isfinite(magnitudes);
  const double median =
      at::nanmedian(magnitudes.masked_fill(~finite, std::numeric_limits<double>::quiet_NaN()))
          .item<double>();
  const at::Tensor first =
      magnitudes.select(0, 0).masked_fill(~finite.select(0, 0), 0.0).to(at::kCPU, at::kDouble);
  if (!sums.massive.defined()) {
    sums.massive = at::zeros({first.numel()}, at::TensorOptions(at::kLong));
    sums.times_median = at::zeros_like(first);
  }
  ++sums.prompts;
  if (!(median > 0)) return;  // nothing finite, or mostly zeros: there is nothing to compare with
  const at::Tensor times = first / median;
  const auto most = std::min<std::int64_t>(kMaxSinkDims, times.numel());
  const auto [largest, dims] = times.topk(most);
  sums.massive.index_add_(0, dims, (largest >= kLeastTimesMedian).to(at::kLong));
  sums.times_median.add_(times);
}

std::pair<std::int64_t, std::int64_t> MassiveDimensions::middle_layers() const {
  const auto layers = static_cast<std::int64_t>(layers_.size());
  return {layers / 4, (3 * layers + 3) / 4};
}

std::vector<FoundSinkDimension> MassiveDimensions::found() const {
  const auto [begin, end] = middle_layers();
  std::vector<FoundSinkDimension> out;
  const std::int64_t size = layers_.front().massive.defined() ? layers_.front().massive.numel() : 0;
  for (std::int64_t dim = 0; dim < size; ++dim) {
    FoundSinkDimension found;
    found.dimension = dim;
    std::int64_t massive_in_middle = 0;
    for (std::int64_t layer = 0; layer < static_cast<std::int64_t>(layers_.size()); ++layer) {
      const LayerSums& sums = layers_[static_cast<std::size_t>(layer)];
      const bool massive =
          more_than_half(sums.massive.const_data_ptr<std::int64_t>()[dim], sums.prompts);
      if (massive) found.layers.push_back(layer);
      if (layer < begin || layer >= end) continue;
      massive_in_middle += massive ? 1 : 0;
      found.times_median += sums.times_median.const_data_ptr<double>()[dim] /
                            static_cast<double>(sums.prompts * (end - begin));
    }
    if (more_than_half(massive_in_middle, end - begin)) out.push_back(std::move(found));
  }
  std::stable_sort(out.begin(), out.end(),
                   [](const auto& a, const auto& b) { return a.times_median > b.times_median; });
  if (out.size() > kMaxSinkDims) out.resize(kMaxSinkDims);
  return out;
}

}  // namespace libvar
