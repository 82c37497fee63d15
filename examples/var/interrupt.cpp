#include "interrupt.h"

#include <csignal>

namespace var_command {
namespace {

volatile std::sig_atomic_t g_interrupted = 0;

extern "C" void note_interrupt(int) {
  g_interrupted = 1;
}

}  // namespace

InterruptScope::InterruptScope() {
  g_interrupted = 0;
  struct sigaction action = {};
  action.sa_handler = note_interrupt;
  action.sa_flags =
      static_cast<int>(SA_RESETHAND | SA_RESTART);  // the second one finds the default again
  sigaction(SIGINT, &action, nullptr);
}

InterruptScope::~InterruptScope() {
  std::signal(SIGINT, SIG_DFL);
}

bool InterruptScope::interrupted() {
  return g_interrupted != 0;
}

void InterruptScope::check() {
  if (interrupted()) throw Interrupted{};
}

}  // namespace var_command
