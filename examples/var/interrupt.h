#pragma once

namespace var_command {

/// Thrown where a signal ends what can't be left half done.
struct Interrupted {
  int signal;  ///< SIGINT (Ctrl-C), SIGTERM or SIGHUP
};

/// While one lives, the first of SIGINT, SIGTERM and SIGHUP sets a flag, and each has its default
/// effect, the end of the process, when it comes again. A signal that was ignored stays ignored
/// (nohup).
class InterruptScope {
 public:
  InterruptScope();
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

  /// The signal that came in this scope, or 0.
  static int interrupted();
  /// @throws Interrupted  once one came
  static void check();
};

}  // namespace var_command
