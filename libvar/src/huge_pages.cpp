#include "huge_pages.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/StringUtil.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "libvar/error.h"

namespace libvar {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kChunk = std::size_t{256} << 20;
constexpr std::size_t kAlignment = 64;  // of a tensor: a line of the cache

std::size_t round_up(std::size_t size, std::size_t unit) {
  return (size + unit - 1) / unit * unit;
}

}  // namespace

void advise_huge_pages(const at::Tensor& tensor) {
  if (!tensor.is_cpu()) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.const_data_ptr());
  const std::uintptr_t first = round_up(begin, kHugePage);
  const std::uintptr_t end = (begin + tensor.nbytes()) / kHugePage * kHugePage;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

/// Untouched pages at its end take no memory.
struct HugePageArena::Chunk {
  explicit Chunk(std::size_t bytes) : mapped_bytes(bytes + kHugePage) {
    mapped =
        ::mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) {
      throw ResourceError(c10::str("weights: ", mapped_bytes,
                                   " bytes of memory can't be had: ", std::strerror(errno)));
    }
    data = reinterpret_cast<char*>(round_up(reinterpret_cast<std::uintptr_t>(mapped), kHugePage));
    size = bytes;
    ::madvise(data, size, MADV_HUGEPAGE);  // only advice
  }

  ~Chunk() { ::munmap(mapped, mapped_bytes); }

  Chunk(const Chunk&) = delete;
  Chunk& operator=(const Chunk&) = delete;

  std::size_t mapped_bytes;
  void* mapped;
  char* data;
  std::size_t size;
};

at::Tensor HugePageArena::empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  const std::size_t bytes =
      round_up(static_cast<std::size_t>(c10::multiply_integers(sizes)) * c10::elementSize(dtype),
               kAlignment);
  if (!chunk_ || used_ + bytes > chunk_->size) {
    chunk_ = std::make_shared<Chunk>(std::max(round_up(bytes, kHugePage), kChunk));
    used_ = 0;
  }
  char* const data = chunk_->data + used_;
  used_ += bytes;
  return at::from_blob(
      data, sizes, [chunk = chunk_](void*) {}, at::TensorOptions().dtype(dtype));
}

}  // namespace libvar
