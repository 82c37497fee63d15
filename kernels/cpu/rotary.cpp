// rotate_and_cache on the CPU: checks, addresses of the rows, threads. The computation is in
// rotary_kernel.cpp.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>

#include "checks.h"
#include "cpu/element_type.h"
#include "cpu/rotary_kernel.h"

namespace libvar::cpu {
namespace {

// Address of the row [b, h, i] of a tensor [B, H, Q, Dh].
class HeadRows {
 public:
  explicit HeadRows(const at::Tensor& tensor)
      : data_(static_cast<std::byte*>(const_cast<void*>(tensor.const_data_ptr()))),
        strides_{tensor.stride(0), tensor.stride(1), tensor.stride(2)},
        element_size_(static_cast<std::int64_t>(tensor.element_size())) {}

  std::byte* at(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return data_ + (b * strides_[0] + h * strides_[1] + i * strides_[2]) * element_size_;
  }

 private:
  std::byte* data_;
  std::int64_t strides_[3];
  std::int64_t element_size_;
};

at::Tensor rotate_and_cache_cpu(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const at::Tensor& sink_scores,
                                const at::Tensor& cos, const at::Tensor& sin,
                                const at::Tensor& places, at::Tensor& key_cache,
                                at::Tensor& value_cache, at::Tensor& sink_score_cache) {
  checks::check_rotate_and_cache(
      {query, key, value, sink_scores, cos, sin, places, key_cache, value_cache, sink_score_cache});
  const std::int64_t batch = query.size(0), num_heads = query.size(1), rows = query.size(2),
                     head_dim = query.size(3), num_kv_heads = key.size(1);
  checks::check_place_values(places, rows, key_cache.size(2));
  at::Tensor rotated = at::empty(query.sizes(), query.options());
  if (batch * rows == 0) return rotated;

  const HeadRows query_rows(query), key_rows(key), value_rows(value), rotated_rows(rotated),
      key_places(key_cache), value_places(value_cache), cos_rows(cos.unsqueeze(1)),
      sin_rows(sin.unsqueeze(1));
  const bool own_angles = cos.size(0) > 1;
  const auto place_of = places.accessor<std::int64_t, 1>();
  const auto scores = sink_scores.accessor<float, 2>();
  auto cached_scores = sink_score_cache.accessor<float, 2>();
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t i = 0; i < rows; ++i) cached_scores[b][place_of[b] + i] = scores[b][i];
  }
  const std::size_t row_bytes = static_cast<std::size_t>(head_dim) * query.element_size();
  RotaryRow shared = {};
  shared.type = element_type(query.scalar_type());
  shared.half = head_dim / 2;
  const auto rotate = LIBVAR_CPU_BUILDS(rotate_row).chosen();
  const std::int64_t heads = num_heads + 2 * num_kv_heads;
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / (heads * head_dim));
  at::parallel_for(0, batch * rows, grain, [&](std::int64_t begin, std::int64_t end) {
    RotaryRow row = shared;
    for (std::int64_t token = begin; token < end; ++token) {
      const std::int64_t b = token / rows, i = token % rows, place = place_of[b] + i;
      row.cos = cos_rows.at(own_angles ? b : 0, 0, i);
      row.sin = sin_rows.at(own_angles ? b : 0, 0, i);
      for (std::int64_t h = 0; h < num_heads; ++h) {
        row.input = query_rows.at(b, h, i);
        row.output = rotated_rows.at(b, h, i);
        rotate(row);
      }
      for (std::int64_t h = 0; h < num_kv_heads; ++h) {
        row.input = key_rows.at(b, h, i);
        row.output = key_places.at(b, h, place);
        rotate(row);
        std::memcpy(value_places.at(b, h, place), value_rows.at(b, h, i), row_bytes);
      }
    }
  });
  return rotated;
}

}  // namespace
}  // namespace libvar::cpu

TORCH_LIBRARY_IMPL(libvar, CPU, m) {
  m.impl("rotate_and_cache", &libvar::cpu::rotate_and_cache_cpu);
}
