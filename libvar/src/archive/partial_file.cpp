#include "archive/partial_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <string>
#include <system_error>

#include "libvar/error.h"

namespace libvar {
namespace {

/// Holds SIGXFSZ back from this thread: past a file size limit write() then fails with EFBIG, like
/// a full disk, instead of ending the process.
class HoldFileSizeSignal {
 public:
  HoldFileSizeSignal() {
    sigemptyset(&signal_);
    sigaddset(&signal_, SIGXFSZ);
    held_ =
        pthread_sigmask(SIG_BLOCK, &signal_, &before_) == 0 && sigismember(&before_, SIGXFSZ) == 0;
  }

  ~HoldFileSizeSignal() {
    if (!held_) return;
    const timespec now{};
    sigtimedwait(&signal_, nullptr, &now);  // takes the pending one, if there is one
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }

 private:
  sigset_t signal_{};
  sigset_t before_{};
  bool held_ = false;
};

}  // namespace

PartialFile::PartialFile(const std::filesystem::path& target) : target_(target) {
  std::error_code ignored;
  const std::filesystem::path parent =
      target.has_parent_path() ? target.parent_path() : std::filesystem::path(".");
  if (!std::filesystem::is_directory(parent, ignored)) {
    throw ArchiveError(target.string() + ": can't be written: there is no directory " +
                       parent.string());
  }
  if (!target.has_filename() || std::filesystem::is_directory(target, ignored)) {
    throw ArchiveError(target.string() + ": can't be written: is a directory");
  }
  for (int attempt = 0; attempt < 100 && fd_ < 0; ++attempt) {
    temporary_ = target;
    temporary_ += ".part-" + std::to_string(::getpid()) + "-" + std::to_string(attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) break;
  }
  if (fd_ < 0) throw ArchiveError(target.string() + ": can't be written: " + std::strerror(errno));

  struct stat old {};

  if (::stat(target.c_str(), &old) == 0) ::fchmod(fd_, old.st_mode & 07777);
}

PartialFile::~PartialFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void PartialFile::write(const void* data, std::size_t size) noexcept {
  if (abandoned_ || error_ != 0) return;
  const HoldFileSizeSignal hold;
  const char* from = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t done = ::write(fd_, from, std::min(size, std::size_t{1} << 30));
    if (done < 0) {
      if (errno == EINTR) continue;
      error_ = errno;
      return;
    }
    from += done;
    size -= static_cast<std::size_t>(done);
    written_ += static_cast<std::uint64_t>(done);
  }
}

void PartialFile::check() const {
  if (error_ != 0) fail(error_);
}

void PartialFile::fail(int error) const {
  throw ResourceError(target_.string() + ": can't be written past " + std::to_string(written_) +
                      " bytes: " + std::strerror(error));
}

void PartialFile::commit() {
  check();
  // A disk may report that it is full only here.
  if (::fdatasync(fd_) != 0) fail(errno);
  const int fd = fd_;
  fd_ = -1;
  if (::close(fd) != 0) fail(errno);
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(errno);
  temporary_.clear();
}

}  // namespace libvar
