#pragma once

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <functional>

namespace var_command {

/// Exit codes of the command.
enum ExitCode : int {
  kDone = 0,
  kFailed = 1,         ///< one line on stderr says what
  kUsage = 2,          ///< a flag or its value is wrong
  kInterrupted = 128,  ///< plus the number of the signal, as a shell reports it: Ctrl-C gives 130
};

/// What the subcommand that was parsed does; gives the exit code.
using Action = std::function<int()>;

/// Each adds a subcommand, which sets `action` when it is parsed.
void add_convert(CLI::App& app, Action& action);
void add_info(CLI::App& app, Action& action);
void add_ask(CLI::App& app, Action& action);
void add_chat(CLI::App& app, Action& action);
void add_sinks(CLI::App& app, Action& action);

}  // namespace var_command
