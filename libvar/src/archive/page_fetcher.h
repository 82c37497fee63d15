#pragma once

#include <ATen/core/Tensor.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

#include "archive/mapped_file.h"

namespace libvar {

/// Reads a file's pages ahead of their use. A thread asks the disk, so that it goes on while the
/// caller works with what is there. Only advice.
class PageFetcher {
 public:
  /// @param ahead_bytes  how far behind a tensor the disk goes on
  explicit PageFetcher(std::shared_ptr<const MappedFile> file,
                       std::uint64_t ahead_bytes = std::uint64_t{256} << 20);
  ~PageFetcher();
  PageFetcher(const PageFetcher&) = delete;
  PageFetcher& operator=(const PageFetcher&) = delete;

  /// Returns when a tensor's pages are in memory; what lies behind it in the file is on its way.
  /// @param view  a tensor of the file, made by tensor_view
  void fetch(const at::Tensor& view);

 private:
  void ask();

  std::shared_ptr<const MappedFile> file_;
  std::uint64_t ahead_bytes_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Offsets in the file: asked of the disk so far in one go, and how far to ask.
  std::uint64_t asked_begin_ = 0, asked_end_ = 0, goal_ = 0;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace libvar
