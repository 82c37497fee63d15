#include "decoder/kv_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "huge_pages.h"

namespace libvar {
namespace {

/// A buffer whose dimension `dim` holds `capacity` positions, with the first `length` of `old` in
/// it.
at::Tensor grown(const at::Tensor& old, at::IntArrayRef sizes, std::int64_t dim,
                 std::int64_t length, const at::TensorOptions& options) {
  at::Tensor result = at::empty(sizes, options);
  advise_huge_pages(result);
  if (length > 0) result.narrow(dim, 0, length).copy_(old.narrow(dim, 0, length));
  return result;
}

/// Keys and values, phi in float32, and the visual mask.
std::int64_t bytes_of(const DecoderConfig& config, at::ScalarType dtype, std::int64_t batch,
                      std::int64_t capacity) {
  const auto element = static_cast<std::int64_t>(c10::elementSize(dtype));
  const std::int64_t layer = 2 * config.num_kv_heads * config.head_dim * element + 4;
  return batch * capacity * (config.num_layers * layer + 1);
}

}  // namespace

KvCache::KvCache(const DecoderConfig& config, const ComputeTarget& target, std::int64_t batch)
    : config_(config),
      target_(target),
      batch_(batch),
      keys_(static_cast<std::size_t>(config.num_layers)),
      values_(static_cast<std::size_t>(config.num_layers)) {}

std::int64_t KvCache::next_capacity(std::int64_t capacity) const {
  if (capacity <= capacity_ || length_ == 0) return std::max(capacity, capacity_);
  return std::max(capacity, std::min(capacity_ + capacity_ / 2, config_.max_positions));
}

std::int64_t KvCache::bytes() const {
  return bytes_of(config_, target_.dtype, batch_, capacity_);
}

std::int64_t KvCache::bytes_to_reserve(std::int64_t capacity) const {
  if (capacity <= capacity_) return 0;
  const std::int64_t growth =
      bytes_of(config_, target_.dtype, batch_, next_capacity(capacity)) - bytes();
  if (length_ == 0) return growth;
  // One buffer is there twice, while its content is copied.
  const auto element = static_cast<std::int64_t>(c10::elementSize(target_.dtype));
  return growth +
         batch_ * capacity_ *
             std::max(config_.num_kv_heads * config_.head_dim * element, config_.num_layers * 4);
}

void KvCache::reserve(std::int64_t capacity) {
  if (capacity <= capacity_) return;
  capacity = next_capacity(capacity);
  if (length_ == 0) capacity_ = 0;  // the buffers go first: running out of memory leaves none
  const auto options = at::TensorOptions().device(target_.device);
  const std::vector<std::int64_t> sizes{batch_, config_.num_kv_heads, capacity, config_.head_dim};
  for (auto* buffers : {&keys_, &values_}) {
    for (at::Tensor& buffer : *buffers) {
      if (length_ == 0) buffer.reset();  // the old one goes before the new one comes
      buffer = grown(buffer, sizes, 2, length_, options.dtype(target_.dtype));
    }
  }
  sink_scores_ = grown(sink_scores_, {config_.num_layers, batch_, capacity}, 2, length_,
                       options.dtype(at::kFloat));
  at::Tensor mask = at::zeros({batch_, capacity}, options.dtype(at::kBool));
  if (length_ > 0) mask.narrow(1, 0, length_).copy_(visual_mask_.narrow(1, 0, length_));
  visual_mask_ = std::move(mask);
  capacity_ = capacity;
}

void KvCache::clear() {
  length_ = 0;
  if (capacity_ > 0) visual_mask_.zero_();
}

void KvCache::mark_visual(std::int64_t begin, std::int64_t end) {
  visual_mask_.narrow(1, begin, end - begin).fill_(true);
}

at::Tensor KvCache::store(std::int64_t layer, const RotaryInputs& rows, const at::Tensor& places) {
  const auto index = static_cast<std::size_t>(layer);
  at::Tensor scores = sink_scores_.select(0, layer);
  return rotate_and_cache(rows, places, keys_[index], values_[index], scores);
}

void KvCache::advance(std::int64_t rows) {
  length_ += rows;
}

KvCache KvCache::sequences(std::int64_t first, std::int64_t count, std::int64_t length) const {
  KvCache view = *this;
  view.batch_ = count;
  view.length_ = length;
  for (auto* buffers : {&view.keys_, &view.values_}) {
    for (at::Tensor& buffer : *buffers) buffer = buffer.narrow(0, first, count);
  }
  view.sink_scores_ = sink_scores_.narrow(1, first, count);
  view.visual_mask_ = visual_mask_.narrow(0, first, count);
  return view;
}

void KvCache::copy_from(const KvCache& other, std::int64_t length) {
  for (std::size_t i = 0; i < keys_.size(); ++i) {
    keys_[i].narrow(2, 0, length).copy_(other.keys_[i].narrow(2, 0, length));
    values_[i].narrow(2, 0, length).copy_(other.values_[i].narrow(2, 0, length));
  }
  sink_scores_.narrow(2, 0, length).copy_(other.sink_scores_.narrow(2, 0, length));
  visual_mask_.zero_();
  visual_mask_.narrow(1, 0, length).copy_(other.visual_mask_.narrow(1, 0, length));
  length_ = length;
}

std::vector<std::int64_t> KvCache::layout() const {
  std::vector<std::int64_t> result = {capacity_};
  const auto add = [&](const at::Tensor& buffer) {
    result.push_back(
        static_cast<std::int64_t>(reinterpret_cast<std::intptr_t>(buffer.const_data_ptr())));
    result.insert(result.end(), buffer.strides().begin(), buffer.strides().end());
  };
  for (const auto* buffers : {&keys_, &values_}) {
    for (const at::Tensor& buffer : *buffers) add(buffer);
  }
  add(sink_scores_);
  add(visual_mask_);
  return result;
}

at::Tensor KvCache::keys(std::int64_t layer, std::int64_t length) const {
  return keys_[static_cast<std::size_t>(layer)].narrow(2, 0, length);
}

at::Tensor KvCache::values(std::int64_t layer, std::int64_t length) const {
  return values_[static_cast<std::size_t>(layer)].narrow(2, 0, length);
}

at::Tensor KvCache::sink_scores(std::int64_t layer, std::int64_t length) const {
  return sink_scores_.select(0, layer).narrow(1, 0, length);
}

at::Tensor KvCache::visual_mask(std::int64_t length) const {
  return visual_mask_.narrow(1, 0, length);
}

at::Tensor KvCache::all_sink_scores() const {
  return sink_scores_.narrow(2, 0, length_);
}

}  // namespace libvar
