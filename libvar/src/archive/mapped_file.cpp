#include "archive/mapped_file.h"

#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "libvar/error.h"

namespace libvar {
namespace {

/// Closes a descriptor at the end of a scope.
struct Descriptor {
  int fd;

  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  const Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) throw ArchiveError(path.string() + ": can't be opened: " + std::strerror(errno));

  struct stat status {};

  if (::fstat(file.fd, &status) != 0)
    throw ArchiveError(path.string() + ": can't be read: " + std::strerror(errno));
  if (S_ISDIR(status.st_mode))
    throw ArchiveError(path.string() + ": is a directory, expected a file");
  if (!S_ISREG(status.st_mode))
    throw ArchiveError(path.string() + ": is not a regular file, so it can't be mapped");
  const auto size = static_cast<std::uint64_t>(status.st_size);
  void* data = nullptr;
  if (size > 0) {
    data = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.fd, 0);
    if (data == MAP_FAILED) {
      throw ResourceError(path.string() + ": " + std::to_string(size) +
                          " bytes can't be mapped: " + std::strerror(errno));
    }
  }
  return std::shared_ptr<const MappedFile>(
      new MappedFile(path, static_cast<const char*>(data), size));
}

MappedFile::MappedFile(std::filesystem::path path, const char* data, std::uint64_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<char*>(data_), size_);
}

void MappedFile::advise_sequential() const {
  // Only advice: a kernel that doesn't take it reads the same bytes.
  if (data_ != nullptr) ::madvise(const_cast<char*>(data_), size_, MADV_SEQUENTIAL);
}

at::Tensor tensor_view(const std::shared_ptr<const MappedFile>& file, std::uint64_t offset,
                       const std::vector<std::int64_t>& shape, at::ScalarType dtype) {
  // from_blob takes no const pointer; nothing in the library writes to weights, and the pages are
  // read-only.
  void* data = const_cast<char*>(file->bytes().data()) + offset;
  return at::from_blob(
      data, shape, [file](void*) {}, at::TensorOptions().dtype(dtype));
}

void forget_pages(const at::Tensor& view) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(view.const_data_ptr());
  const std::uintptr_t first = (begin + page - 1) / page * page;
  const std::uintptr_t end = (begin + view.nbytes()) / page * page;
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

std::int64_t checked_numel(const std::vector<std::int64_t>& shape) {
  std::int64_t numel = 1;
  bool empty = false;
  for (const std::int64_t size : shape) {
    if (size < 0) return -1;
    if (size == 0) {
      empty = true;
    } else if (numel > (std::int64_t{1} << 59) / size) {
      return -1;
    } else {
      numel *= size;
    }
  }
  return empty ? 0 : numel;
}

}  // namespace libvar
