#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <array>
#include <cstdint>
#include <optional>

namespace libvar {

/// Copies from ordinary or mapped memory to a device, through two pinned buffers in turn: while one
/// is on its way, the other is filled by all threads.
class Upload {
 public:
  /// @param device  the CPU has no way to go: its copies take the same turns (tests)
  explicit Upload(at::Device device, std::int64_t buffer_bytes = std::int64_t{16} << 20);

  /// When it returns, `source` is no longer needed; `target` is written in the current stream's
  /// order.
  /// @param target  on the device, contiguous
  /// @param source  on the CPU, contiguous, as many elements of the same dtype
  void copy(const at::Tensor& target, const at::Tensor& source);

  /// A new tensor on the device.
  at::Tensor tensor(const at::Tensor& source);

 private:
  struct Buffer {
    at::Tensor bytes;
    std::optional<c10::Event> on_its_way;
  };

  at::Device device_;
  std::int64_t buffer_bytes_;
  std::array<Buffer, 2> buffers_;
  std::size_t turn_ = 0;
};

}  // namespace libvar
