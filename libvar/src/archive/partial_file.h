#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace libvar {

/// A file that grows under a temporary name beside its target and takes the target's name when it
/// is complete; a file that it replaces gives it its permissions. Whatever ends it before commit()
/// removes it.
class PartialFile {
 public:
  /// @throws ArchiveError   the target's directory is missing or not writable, or the target is a
  /// directory
  explicit PartialFile(const std::filesystem::path& target);
  ~PartialFile();
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;

  /// Appends; an error is remembered and later writes are dropped. Never throws: the archive writer
  /// calls this from a destructor, where an exception would abort the process.
  void write(const void* data, std::size_t size) noexcept;

  /// Drops everything that is still written from now on.
  void abandon() noexcept { abandoned_ = true; }

  /// @throws ResourceError  a write failed: names the target and the reason
  void check() const;

  /// Flushes to the disk and renames.
  /// @throws ResourceError  as check()
  void commit();

 private:
  [[noreturn]] void fail(int error) const;

  std::filesystem::path target_;
  std::filesystem::path temporary_;
  int fd_ = -1;
  int error_ = 0;
  bool abandoned_ = false;
  std::uint64_t written_ = 0;
};

}  // namespace libvar
