#include "progress_bar.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "numbers.h"

namespace var_command {

using namespace std::chrono_literals;

ProgressBar::ProgressBar(std::string title, Unit unit)
    : title_(std::move(title)), unit_(unit), enabled_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void ProgressBar::update(std::int64_t done, std::int64_t total) {
  const auto now = Clock::now();
  if (!enabled_ || total <= 0 || now - begin_ < 300ms || (drawn_ && now - last_ < 100ms)) return;
  last_ = now;
  drawn_ = true;
  constexpr int kWidth = 30;
  const double share = std::clamp(static_cast<double>(done) / static_cast<double>(total), 0.0, 1.0);
  const auto filled = static_cast<std::size_t>(share * kWidth);
  const double elapsed = std::chrono::duration<double>(now - begin_).count();
  const double left = share > 0 ? elapsed * (1 - share) / share : 0;
  const auto amount = [this](std::int64_t n) {
    return unit_ == Unit::kBytes ? bytes_text(n) : std::to_string(n);
  };
  std::fprintf(stderr, "\r%s [%s%s] %3.0f %%  %s of %s, %.0f s left\x1b[K", title_.c_str(),
               std::string(filled, '#').c_str(), std::string(kWidth - filled, '.').c_str(),
               share * 100, amount(done).c_str(), amount(total).c_str(), left);
  std::fflush(stderr);
}

}  // namespace var_command
