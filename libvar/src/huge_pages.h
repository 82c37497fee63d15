#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <memory>

namespace libvar {

/// Asks the system for huge pages behind memory that was not written yet: a processor reads them
/// up to 1.6 times as fast, because it fetches ahead within a page and translates fewer addresses.
/// Only advice; without effect on other devices, on small tensors and where the system has none.
void advise_huge_pages(const at::Tensor& tensor);

/// Memory in huge pages for many tensors, one behind another. Lives as long as any of them.
class HugePageArena {
 public:
  /// A contiguous CPU tensor, not initialised.
  /// @throws c10::OutOfMemoryError  there is no address space left
  at::Tensor empty(at::IntArrayRef sizes, at::ScalarType dtype);

 private:
  struct Chunk;
  std::shared_ptr<Chunk> chunk_;
  std::size_t used_ = 0;  // of the chunk
};

}  // namespace libvar
