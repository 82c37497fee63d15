#pragma once

namespace var_command {

/// Thrown where Ctrl-C ends what can't be left half done.
struct Interrupted {};

/// While one lives, the first Ctrl-C sets a flag and the second ends the process at once.
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  /// True once Ctrl-C was pressed in this scope.
  static bool interrupted();
  /// @throws Interrupted  if so
  static void check();
};

}  // namespace var_command
