#include "interrupt.h"

#include <csignal>

namespace var_command {
namespace {

constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};

volatile std::sig_atomic_t g_interrupted = 0;

extern "C" void note_interrupt(int signal) {
  g_interrupted = signal;
}

bool is_ignored(int signal) {
  struct sigaction current = {};
  return sigaction(signal, nullptr, &current) == 0 && current.sa_handler == SIG_IGN;
}

}  // namespace

InterruptScope::InterruptScope() {
  g_interrupted = 0;
  struct sigaction action = {};
  action.sa_handler = note_interrupt;
  action.sa_flags =
      static_cast<int>(SA_RESETHAND | SA_RESTART);  // the second one finds the default again
  for (const int signal : kSignals) {
    if (!is_ignored(signal)) sigaction(signal, &action, nullptr);
  }
}

InterruptScope::~InterruptScope() {
  for (const int signal : kSignals) {
    if (!is_ignored(signal)) std::signal(signal, SIG_DFL);
  }
}

int InterruptScope::interrupted() {
  return g_interrupted;
}

void InterruptScope::check() {
  if (const int signal = interrupted()) throw Interrupted{signal};
}

}  // namespace var_command
