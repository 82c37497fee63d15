#include "upload.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>

namespace libvar {
namespace {

at::Tensor bytes_of(const at::Tensor& tensor) {
  return tensor.reshape({-1}).view(at::kByte);  // reshape: a view of what is contiguous
}

}  // namespace

Upload::Upload(at::Device device, std::int64_t buffer_bytes)
    : device_(device), buffer_bytes_(buffer_bytes) {}

void Upload::copy(const at::Tensor& target, const at::Tensor& source) {
  TORCH_CHECK(target.is_contiguous() && source.is_contiguous() &&
              target.scalar_type() == source.scalar_type() && target.numel() == source.numel());
  const at::Tensor to = bytes_of(target), from = bytes_of(source);
  const auto size = static_cast<std::int64_t>(source.nbytes());
  for (std::int64_t begin = 0; begin < size; begin += buffer_bytes_) {
    Buffer& buffer = buffers_[turn_++ % buffers_.size()];
    if (!buffer.bytes.defined()) {
      buffer.bytes =
          at::empty({buffer_bytes_}, at::TensorOptions(at::kByte).pinned_memory(!device_.is_cpu()));
    }
    if (buffer.on_its_way) buffer.on_its_way->synchronize();
    const std::int64_t count = std::min(buffer_bytes_, size - begin);
    const at::Tensor piece = buffer.bytes.narrow(0, 0, count);
    piece.copy_(from.narrow(0, begin, count));
    to.narrow(0, begin, count).copy_(piece, /*non_blocking=*/true);
    if (device_.is_cpu()) continue;
    if (!buffer.on_its_way) buffer.on_its_way.emplace(device_.type());
    buffer.on_its_way->record(c10::impl::VirtualGuardImpl(device_.type()).getStream(device_));
  }
}

at::Tensor Upload::tensor(const at::Tensor& source) {
  at::Tensor result = at::empty_like(source, source.options().device(device_));
  copy(result, source);
  return result;
}

}  // namespace libvar
