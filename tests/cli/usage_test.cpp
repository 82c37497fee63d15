// What the command says before it has a model.

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <string>

#include "catch.h"
#include "command.h"
#include "libvar/threads.h"
#include "libvar/version.h"
#include "temporary_folder.h"

using namespace libvar::testing;
using Catch::Contains;
using Catch::StartsWith;

namespace {

using Arguments = std::vector<std::string>;

/// One line that starts with `var: error: `, nothing on stdout.
void check_error(const CommandResult& result, int code) {
  INFO("stdout: " << result.out << "\nstderr: " << result.err);
  CHECK(result.code == code);
  CHECK(result.out.empty());
  CHECK_THAT(result.err, StartsWith("var: error: "));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(result.err.back() == '\n');
}

Arguments ask(const Arguments& flags) {
  Arguments arguments = {"ask", "model.pt", "What is it?"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

/// Sets environment variables for what is started in its scope; "" unsets one.
class EnvironmentScope {
 public:
  explicit EnvironmentScope(const std::map<std::string, std::string>& values) {
    for (const auto& [name, value] : values) {
      const char* const before = std::getenv(name.c_str());
      before_[name] = before == nullptr ? "" : before;
      set(name, value);
    }
  }

  ~EnvironmentScope() {
    for (const auto& [name, value] : before_) set(name, value);
  }

  EnvironmentScope(const EnvironmentScope&) = delete;
  EnvironmentScope& operator=(const EnvironmentScope&) = delete;

 private:
  static void set(const std::string& name, const std::string& value) {
    if (value.empty())
      unsetenv(name.c_str());
    else
      setenv(name.c_str(), value.c_str(), 1);
  }

  std::map<std::string, std::string> before_;
};

/// With one of them set LibTorch chooses the number of threads.
constexpr std::array<const char*, 5> kThreadVariables = {
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"};

/// The number of threads that `var ask` says it uses.
int threads_used(const Arguments& flags, const std::map<std::string, std::string>& environment) {
  std::map<std::string, std::string> values;
  for (const char* name : kThreadVariables) values[name] = "";
  for (const auto& [name, value] : environment) values[name] = value;
  const EnvironmentScope scope(values);
  Arguments arguments = {"ask", "/none.pt", "What is it?", "--log-level", "info"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const std::string text = run_command(arguments).err, label = "threads of the CPU: ";
  INFO(text);
  const std::size_t found = text.find(label);
  REQUIRE(found != std::string::npos);
  return std::stoi(text.substr(found + label.size()));
}

}  // namespace

TEST_CASE("help shows every subcommand, each with an example", "[cli]") {
  const CommandResult help = run_command({"--help"});
  CHECK(help.code == 0);
  CHECK(help.err.empty());
  CHECK_THAT(help.out, Contains("130 interrupted"));
  for (const std::string name : {"convert", "info", "ask", "chat"}) {
    CHECK_THAT(help.out, Contains("  " + name + " "));
    const CommandResult sub = run_command({name, "--help"});
    CHECK(sub.code == 0);
    CHECK_THAT(sub.out, Contains("Example") && Contains("var " + name + " "));
    for (const char* flag : {"--device", "--dtype", "--threads", "--log-level"})
      CHECK_THAT(sub.out, Contains(flag));
    for (const char* variable : kThreadVariables) CHECK_THAT(sub.out, Contains(variable));
  }
}

TEST_CASE("the flag, the environment or the machine sets the number of threads", "[cli]") {
  const int here = libvar::recommended_threads();
  CHECK(threads_used({}, {}) == here);
  CHECK(threads_used({"--threads", "5"}, {}) == 5);
  CHECK(threads_used({"--threads", "5"}, {{"OMP_NUM_THREADS", "1"}}) == 5);
  CHECK(threads_used({}, {{"OMP_NUM_THREADS", "1"}}) == 1);
  CHECK(threads_used({}, {{"MKL_NUM_THREADS", "1"}}) == 1);
  // Bound, the command's first thread has one processor; the others are there all the same.
  CHECK(threads_used({}, {{"OMP_PROC_BIND", "true"}}) >= std::min(here, 2));
}

TEST_CASE("the version is the library's", "[cli]") {
  const CommandResult result = run_command({"--version"});
  CHECK(result.code == 0);
  CHECK(result.out == std::string("var ") + libvar::version() + "\n");
}

TEST_CASE("wrong usage is one line and exit code 2", "[cli]") {
  const Arguments arguments = GENERATE(
      Arguments{}, Arguments{"sing"}, Arguments{"ask"}, Arguments{"ask", "model.pt"},
      Arguments{"convert", "folder"}, Arguments{"info"}, Arguments{"sinks"},
      Arguments{"sinks", "discover"}, Arguments{"sinks", "find", "m.pt"},
      ask({"--no-var", "--discover-sinks"}), Arguments{"info", "a.pt", "b.pt"},
      ask({"--tua", "20"}), ask({"--tau", "NaN"}), ask({"--tau", "-1"}), ask({"--tau", "high"}),
      ask({"--tau"}), ask({"--p", "2"}), ask({"--p", "nan"}), ask({"--rho", "-0.1"}),
      ask({"--min-visual-mass", "1.5"}), ask({"--first-layer", "-1"}),
      ask({"--first-layer", "1.5"}), ask({"--preset", "best"}), ask({"--no-var", "--tau", "20"}),
      ask({"--no-var", "--preset", "general"}), ask({"--no-var", "--compare"}),
      ask({"--compare", "--logits", "l.pt"}), ask({"--max-new-tokens", "0"}),
      ask({"--max-new-tokens", "many"}), ask({"--temperature", "-1"}),
      ask({"--temperature", "nan"}), ask({"--top-p", "0"}), ask({"--top-p", "1.1"}),
      ask({"--top-k", "0"}), ask({"--seed", "-1"}), ask({"--device", "gpu"}),
      ask({"--device", "cuda:x"}), ask({"--dtype", "int8"}), ask({"--threads", "0"}),
      ask({"--log-level", "loud"}), ask({"--image-mode", "stretch"}),
      ask({"--resize-order", "opencv"}), ask({"--prompt-style", "chatml"}),
      ask({"--raw-prompt", "x", "--system", "y"}), ask({"a second question"}),
      Arguments{"convert", "a", "b.pt", "--sink-dims", "1,x"},
      Arguments{"convert", "a", "b.pt", "--dtype", "fp8"});
  std::string shown;
  for (const std::string& argument : arguments) shown += argument + " ";
  INFO("var " << shown);
  check_error(run_command(arguments), 2);
}

TEST_CASE("a usage error names the flag and what it expects", "[cli]") {
  CHECK_THAT(run_command(ask({"--tau", "NaN"})).err, Contains("tau must be >= 0"));
  CHECK_THAT(run_command(ask({"--p", "2"})).err, Contains("p must be in [0, 1], got 2"));
  CHECK_THAT(run_command(ask({"--preset", "best"})).err,
             Contains("--preset") && Contains("vision-centric"));
  CHECK_THAT(run_command(ask({"--tua", "20"})).err, Contains("--tua"));
  CHECK_THAT(run_command({"sing", "model.pt"}).err, Contains("unknown subcommand: sing"));
  CHECK_THAT(run_command({"sinks", "find", "m.pt"}).err, Contains("unknown subcommand: find"));
  CHECK_THAT(run_command({"sinks", "discover"}).err, Contains("MODEL.pt is required"));
  CHECK_THAT(run_command(ask({"--device", "gpu"})).err,
             Contains("expected auto, cpu, cuda or cuda:N, got gpu"));
}

TEST_CASE("files that are not there are one line and exit code 1", "[cli]") {
  const TemporaryFolder folder;
  const std::string none = (folder / "none").string(), here = folder.path().string();
  for (const Arguments& arguments : {Arguments{"ask", none, "What?"},
                                     {"ask", here, "What?"},
                                     {"chat", none},
                                     {"info", none},
                                     {"info", here},
                                     {"sinks", "discover", none, "--save"},
                                     {"sinks", "discover", none, "--image", none + ".png"},
                                     {"ask", none, "What?", "--image", none + ".png"},
                                     {"convert", none, none + ".pt"},
                                     {"convert", here, none + ".pt"},
                                     {"ask", none, "What?", "--logits", none + "/logits.pt"},
                                     {"ask", none, "What?", "--logits", here}}) {
    INFO(arguments[0] << " " << arguments[1]);
    const CommandResult result = run_command(arguments);
    check_error(result, 1);
    CHECK_THAT(result.err, Contains(folder.path().string()));
  }
  CHECK(std::filesystem::is_empty(folder.path()));
}
