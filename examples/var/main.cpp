#include <c10/util/Exception.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "command.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "libvar/version.h"

namespace var_command {
namespace {

/// An error takes one line, whatever its text.
void print_error(std::string text) {
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::fprintf(stderr, "var: error: %s\n", text.c_str());
}

/// The argument in the place of a subcommand that nobody knows; empty where none stands there.
std::string unknown_subcommand(const CLI::App& app, int argc, char** argv) {
  const CLI::App* command = &app;
  int place = 1;
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    ++place;
  }
  const bool unknown =
      command->get_require_subcommand_min() > 0 && place < argc && argv[place][0] != '-';
  return unknown ? argv[place] : "";
}

int run_action(const Action& action) {
  try {
    const int code = action();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      print_error("the output can't be written");
      return kFailed;
    }
    return code;
  } catch (const Interrupted& interrupted) {
    std::fprintf(stderr, "var: interrupted\n");
    return kInterrupted + interrupted.signal;
  } catch (const libvar::ConfigError& error) {
    print_error(error.what());
    return kUsage;
  } catch (const c10::Error& error) {
    print_error(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    print_error("out of memory");
  } catch (const std::exception& error) {
    print_error(error.what());
  }
  return kFailed;
}

int run(int argc, char** argv) {
  CLI::App app(
      "Questions about images, answered by large multimodal models with Visual Attention "
      "Redistribution (VAR)",
      "var");
  app.set_version_flag("--version", std::string("var ") + libvar::version());
  app.require_subcommand(1);
  app.footer(
      "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C).\n\n"
      "Example:\n  var ask model.pt \"What is on the table?\" --image photo.jpg");
  Action action;
  add_convert(app, action);
  add_info(app, action);
  add_ask(app, action);
  add_chat(app, action);
  add_sinks(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::RequiredError& error) {
    const std::string unknown = unknown_subcommand(app, argc, argv);
    print_error((unknown.empty() ? error.what() : "unknown subcommand: " + unknown) +
                " (see --help)");
    return kUsage;
  } catch (const CLI::ParseError& error) {
    print_error(std::string(error.what()) + " (see --help)");
    return kUsage;
  }
  return run_action(action);
}

}  // namespace
}  // namespace var_command

// What can escape is out of memory while the flags are read.
// NOLINTNEXTLINE(bugprone-exception-escape)
int main(int argc, char** argv) {
  std::signal(
      SIGXFSZ,
      SIG_IGN);  // a file size limit is an error like a full disk, not the end of the process
  return var_command::run(argc, argv);
}
