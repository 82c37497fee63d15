#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace var_command {

/// A bar on stderr, drawn only where stderr is a terminal and the work takes longer than a moment;
/// wiped at the end.
class ProgressBar {
 public:
  enum class Unit { kBytes, kPieces };

  explicit ProgressBar(std::string title, Unit unit = Unit::kBytes);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  /// @param done, total  in the bar's unit
  void update(std::int64_t done, std::int64_t total);

 private:
  using Clock = std::chrono::steady_clock;

  std::string title_;
  Unit unit_;
  bool enabled_;
  bool drawn_ = false;
  Clock::time_point begin_ = Clock::now();
  Clock::time_point last_ = begin_;
};

}  // namespace var_command
