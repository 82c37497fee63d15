#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace libvar::testing {

/// What a run of the command `var` gave.
struct CommandResult {
  int code = -1;  ///< exit code; 128 + n where signal n ended it
  std::string out, err;
};

struct CommandOptions {
  std::string input = {};                    ///< its standard input
  std::optional<long> file_size_limit = {};  ///< RLIMIT_FSIZE in bytes
  std::optional<std::size_t> interrupt_after =
      {};          ///< SIGINT once it has written so many bytes to stdout
  int signal = 0;  ///< sent once a file appears in the folder of the next member
  std::string signal_when_file_in = {};
  std::uintmax_t signal_at_bytes = 0;  ///< and has so many bytes
};

/// Runs the command and waits for its end. Its streams are no terminals.
CommandResult run_command(const std::vector<std::string>& arguments,
                          const CommandOptions& options = {});

}  // namespace libvar::testing
