#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string_view>
#include <vector>

namespace libvar {

/// A whole file mapped read-only; unmapped when the last owner goes. The file must not shrink
/// meanwhile.
class MappedFile {
 public:
  /// @throws ArchiveError   missing, a directory, not readable
  /// @throws ResourceError  no address space left
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);

  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return {data_, static_cast<std::size_t>(size_)}; }

  std::uint64_t size() const { return size_; }

  const std::filesystem::path& path() const { return path_; }

  /// Says that the file will be read once from front to end.
  void advise_sequential() const;

 private:
  MappedFile(std::filesystem::path path, const char* data, std::uint64_t size);

  std::filesystem::path path_;
  const char* data_;
  std::uint64_t size_;
};

/// A contiguous tensor whose storage is part of the file and keeps it mapped.
///
/// @param offset  of the first byte; the caller has checked that the tensor lies within the file
at::Tensor tensor_view(const std::shared_ptr<const MappedFile>& file, std::uint64_t offset,
                       const std::vector<std::int64_t>& shape, at::ScalarType dtype);

/// The pages that lie in a tensor of the file leave this process's memory; read again, they come
/// back from the file.
/// @param view  made by tensor_view
void forget_pages(const at::Tensor& view);

/// Elements of a shape, or -1 where a dimension is negative or the number of bytes would not fit in
/// 62 bits.
std::int64_t checked_numel(const std::vector<std::int64_t>& shape);

}  // namespace libvar
