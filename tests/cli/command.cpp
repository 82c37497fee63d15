#include "command.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <stdexcept>
#include <utility>

#include "temporary_folder.h"

extern char** environ;

namespace libvar::testing {
namespace {

void check(bool ok, const char* what) {
  if (!ok) throw std::runtime_error(std::string("running var: ") + what);
}

class Pipe {
 public:
  Pipe() { check(pipe2(ends_.data(), O_CLOEXEC) == 0, "pipe"); }

  ~Pipe() {
    close_end(0);
    close_end(1);
  }

  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;

  int read_end() const { return ends_[0]; }

  int write_end() const { return ends_[1]; }

  void close_end(std::size_t end) {
    if (ends_[end] >= 0) close(std::exchange(ends_[end], -1));
  }

 private:
  std::array<int, 2> ends_{-1, -1};
};

/// Sets RLIMIT_FSIZE for what is started in its scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(std::optional<long> bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    if (!bytes) return;
    rlimit limit = before_;
    limit.rlim_cur = static_cast<rlim_t>(*bytes);
    check(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
  }

  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before_); }

  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  rlimit before_{};
};

pid_t start(const std::vector<std::string>& arguments, const std::string& input_file,
            const Pipe& out, const Pipe& err, const CommandOptions& options) {
  std::string program = LIBVAR_VAR_COMMAND;
  std::vector<char*> argv = {program.data()};
  std::vector<std::string> copies = arguments;
  for (std::string& argument : copies) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, input_file.c_str(), O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write_end(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, err.write_end(), STDERR_FILENO);
  const FileSizeLimit limit(options.file_size_limit);
  pid_t child = -1;
  const int error = posix_spawn(&child, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  check(error == 0, "it can't be started");
  return child;
}

/// Whether the folder has a file of the size.
bool has_file(const CommandOptions& options) {
  for (const auto& entry : std::filesystem::directory_iterator(options.signal_when_file_in)) {
    std::error_code gone;  // it may have been renamed
    const std::uintmax_t size = entry.file_size(gone);
    if (options.signal_at_bytes == 0 || (!gone && size >= options.signal_at_bytes)) return true;
  }
  return false;
}

/// Waits for a file in the empty folder and sends the signal; gives up at the child's end.
void signal_at_first_file(pid_t child, const CommandOptions& options) {
  siginfo_t ended{};
  while (!has_file(options)) {
    if (waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT) != 0 ||
        ended.si_pid == child)
      return;
  }
  kill(child, options.signal);
}

/// Reads both streams to their ends.
void read_streams(pid_t child, const Pipe& out, const Pipe& err, const CommandOptions& options,
                  CommandResult& result) {
  std::array<pollfd, 2> streams = {pollfd{out.read_end(), POLLIN, 0},
                                   pollfd{err.read_end(), POLLIN, 0}};
  std::array<std::string*, 2> texts = {&result.out, &result.err};
  bool interrupted = !options.interrupt_after;
  for (int open = 2; open > 0;) {
    check(poll(streams.data(), streams.size(), 120'000) > 0, "it does not end");
    for (std::size_t i = 0; i < 2; ++i) {
      if (streams[i].revents == 0) continue;
      std::array<char, 4096> buffer{};
      const ssize_t count = read(streams[i].fd, buffer.data(), buffer.size());
      if (count <= 0) {
        streams[i].fd = -1;
        --open;
      } else {
        texts[i]->append(buffer.data(), static_cast<std::size_t>(count));
      }
    }
    if (!interrupted && result.out.size() >= *options.interrupt_after) {
      interrupted = true;
      kill(child, SIGINT);
    }
  }
}

}  // namespace

CommandResult run_command(const std::vector<std::string>& arguments,
                          const CommandOptions& options) {
  const TemporaryFolder folder;
  const std::string input_file = (folder / "input").string();
  write_bytes(input_file, options.input);
  Pipe out, err;
  const pid_t child = start(arguments, input_file, out, err, options);
  out.close_end(1);
  err.close_end(1);
  CommandResult result;
  if (options.signal != 0) signal_at_first_file(child, options);
  read_streams(child, out, err, options, result);
  int status = 0;
  check(waitpid(child, &status, 0) == child, "waitpid");
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace libvar::testing
