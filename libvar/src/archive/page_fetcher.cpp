#include "archive/page_fetcher.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>
#include <utility>

namespace libvar {

PageFetcher::PageFetcher(std::shared_ptr<const MappedFile> file, std::uint64_t ahead_bytes)
    : file_(std::move(file)), ahead_bytes_(ahead_bytes) {
  try {
    thread_ = std::thread([this] { ask(); });
  } catch (const std::system_error&) {  // no more threads: pages come when they are waited for
  }
}

PageFetcher::~PageFetcher() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_one();
  if (thread_.joinable()) thread_.join();
}

void PageFetcher::ask() {
  // Of a longer piece Linux asks the disk for its first read_ahead_kb or max_sectors_kb alone.
  constexpr std::uint64_t kPiece = std::uint64_t{512} << 10;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || asked_end_ < goal_; });
    if (stop_) return;
    const std::uint64_t piece = asked_end_, size = std::min(kPiece, goal_ - piece);
    asked_end_ += size;
    lock.unlock();
    ::madvise(const_cast<char*>(file_->bytes().data()) + piece, size, MADV_WILLNEED);
    lock.lock();
  }
}

void PageFetcher::fetch(const at::Tensor& view) {
#ifndef MADV_POPULATE_READ
  constexpr int MADV_POPULATE_READ = 22;  // Linux 5.14; older ones answer EINVAL
#endif
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  char* const data = const_cast<char*>(file_->bytes().data());
  const auto offset =
      static_cast<std::uint64_t>(static_cast<const char*>(view.const_data_ptr()) - data);
  const std::uint64_t begin = offset / page * page, end = offset + view.nbytes();
  if (begin == end) return;
  {
    const std::lock_guard lock(mutex_);
    if (begin < asked_begin_ || begin > asked_end_) asked_begin_ = asked_end_ = begin;
    // Requests begin at pages: so must the next one behind the goal.
    goal_ = std::min(file_->size(), (end + ahead_bytes_) / page * page);
  }
  changed_.notify_one();
  ::madvise(data + begin, end - begin, MADV_POPULATE_READ);
}

}  // namespace libvar
