// ask --questions on the goldens' tiny LLaVA: its answers are long and differ with every setting.

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "catch.h"
#include "cli/command.h"
#include "golden_fixture.h"
#include "temporary_folder.h"

using namespace libvar::testing;
using Catch::Contains;
using nlohmann::json;
using nlohmann::ordered_json;

namespace {

using Arguments = std::vector<std::string>;

/// Questions about none, one and two pictures; two have the same id.
struct QuestionFile {
  TemporaryFolder folder;
  std::vector<json> questions = {
      {{"question_id", 1}, {"image", "tiny.png"}, {"text", "What is it?"}},
      {{"question_id", "b"}, {"image", "tiny.png"}, {"text", "Is there a dog? \"Yes\" or no"}},
      {{"question_id", 3}, {"text", "Who are you?"}},
      {{"question_id", 3}, {"image", {"tiny.png", "wide.png"}}, {"text", "Which is larger?"}},
      {{"question_id", 5}, {"image", "wide.png"}, {"text", "What is it?"}, {"label", "x"}},
      {{"question_id", 6}, {"image", "tiny.png"}, {"text", "How many?"}, {"category", 7}},
  };

  QuestionFile() {
    copy_image("tiny.png", "tiny.png");
    copy_image("wide.png", "wide.png");
    write();
  }

  void copy_image(const std::string& from, const std::string& to) const {
    std::filesystem::create_directories(folder / "images");
    std::filesystem::copy_file(golden_folder() / "images" / from, folder.path() / "images" / to,
                               std::filesystem::copy_options::overwrite_existing);
  }

  void write() const {
    std::string text;
    for (const json& question : questions) text += question.dump() + "\n";
    write_bytes(path(), text);
  }

  std::string path() const { return (folder / "q.jsonl").string(); }

  std::string out() const { return (folder / "out" / "answers.jsonl").string(); }

  /// `var ask --questions` in float32 on the CPU.
  CommandResult ask(const Arguments& flags = {}, const CommandOptions& options = {}) const {
    Arguments arguments = {"ask",         golden_archive("mha").string(),
                           "--questions", path(),
                           "--images",    (folder / "images").string(),
                           "--device",    "cpu",
                           "--dtype",     "fp32",
                           "--threads",   "1"};
    if (std::find(flags.begin(), flags.end(), "--max-new-tokens") == flags.end())
      arguments.insert(arguments.end(), {"--max-new-tokens", "12"});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return run_command(arguments, options);
  }

  CommandResult ask_into_file(const Arguments& flags = {},
                              const CommandOptions& options = {}) const {
    std::filesystem::create_directories(folder / "out");
    Arguments all = {"--out", out()};
    all.insert(all.end(), flags.begin(), flags.end());
    return ask(all, options);
  }

  /// The answers of an undisturbed run.
  std::string whole() const {
    const CommandResult result = ask();
    INFO(result.err);
    REQUIRE(result.code == 0);
    CHECK(result.err.empty());
    REQUIRE(std::count(result.out.begin(), result.out.end(), '\n') ==
            static_cast<std::ptrdiff_t>(questions.size()));
    return result.out;
  }
};

std::vector<ordered_json> lines_of(const std::string& text) {
  std::vector<ordered_json> out;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = text.find('\n', begin);
    REQUIRE(end != std::string::npos);
    out.push_back(ordered_json::parse(text.substr(begin, end - begin)));
    begin = end + 1;
  }
  return out;
}

std::string trimmed(const std::string& text) {
  const std::size_t begin = text.find_first_not_of(" \n");
  return begin == std::string::npos ? ""
                                    : text.substr(begin, text.find_last_not_of(" \n") - begin + 1);
}

/// What `var ask` without --questions answers.
std::string answer_alone(const QuestionFile& file, const json& question, const Arguments& flags) {
  Arguments arguments = {"ask",
                         golden_archive("mha").string(),
                         question.at("text"),
                         "--device",
                         "cpu",
                         "--dtype",
                         "fp32",
                         "--threads",
                         "1",
                         "--max-new-tokens",
                         "12"};
  json images = question.value("image", json::array());
  if (!images.is_array()) images = json::array({images});
  for (const std::string name : images)
    arguments.insert(arguments.end(), {"--image", (file.folder.path() / "images" / name).string()});
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  const CommandResult result = run_command(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return trimmed(result.out);
}

void check_error(const CommandResult& result, int code, const std::string& text) {
  INFO("stdout: " << result.out << "\nstderr: " << result.err);
  CHECK(result.code == code);
  CHECK_THAT(result.err, Catch::StartsWith("var: error: ") && Contains(text));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}

}  // namespace

TEST_CASE("ask --questions gives in order what each question gets alone, in LLaVA's format",
          "[cli][questions]") {
  const QuestionFile file;
  const auto flags = GENERATE(Arguments{}, Arguments{"--preset", "reference", "--p", "0.9"},
                              Arguments{"--temperature", "0.8", "--seed", "3", "--no-var"});
  CAPTURE(flags);
  std::vector<std::string> alone;
  for (const json& question : file.questions) alone.push_back(answer_alone(file, question, flags));
  for (const char* batch : {"1", "4"}) {
    CAPTURE(batch);
    Arguments all = flags;
    all.insert(all.end(), {"--batch", batch});
    const CommandResult result = file.ask(all);
    INFO(result.err);
    REQUIRE(result.code == 0);
    const std::vector<ordered_json> lines = lines_of(result.out);
    REQUIRE(lines.size() == file.questions.size());
    for (std::size_t i = 0; i < lines.size(); ++i) {
      CAPTURE(i);
      std::vector<std::string> keys;
      for (const auto& [key, value] : lines[i].items()) keys.push_back(key);
      CHECK(keys ==
            Arguments{"question_id", "prompt", "text", "answer_id", "model_id", "metadata"});
      CHECK(lines[i].at("question_id") == file.questions[i].at("question_id"));
      CHECK(lines[i].at("prompt") == file.questions[i].at("text"));
      CHECK(lines[i].at("text") == alone[i]);
      CHECK(lines[i].at("model_id") == golden_archive("mha").stem().string());
      CHECK(lines[i].at("metadata").at("settings").at("max_new_tokens") == 12);
    }
  }
}

TEST_CASE("pictures of a question file lie beside it unless --images says otherwise",
          "[cli][questions]") {
  QuestionFile file;
  for (const char* name : {"tiny.png", "wide.png"})
    std::filesystem::copy_file(file.folder.path() / "images" / name, file.folder / name);
  const CommandResult result =
      run_command({"ask", golden_archive("mha").string(), "--questions", file.path(), "--device",
                   "cpu", "--dtype", "fp32", "--max-new-tokens", "12"});
  INFO(result.err);
  CHECK(result.code == 0);
  CHECK(result.out == file.whole());
}

TEST_CASE("a file of answers goes on from wherever it was cut off", "[cli][questions]") {
  const QuestionFile file;
  const std::string whole = file.whole();
  const std::size_t first = whole.find('\n') + 1, second = whole.find('\n', first) + 1;
  for (const std::size_t bytes :
       {std::size_t{0}, std::size_t{1}, std::size_t{20}, first - 1, first, first + 1, second - 30,
        second - 1, whole.size() - 1, whole.size()}) {
    CAPTURE(bytes, first, second);
    write_bytes(file.out(), whole.substr(0, bytes));
    const CommandResult result = file.ask_into_file({"--batch", "2"});
    INFO(result.err);
    CHECK(result.code == 0);
    CHECK(result.out.empty());
    CHECK(read_bytes(file.out()) == whole);
  }
  // What is there is not asked again.
  std::string changed = whole;
  changed[changed.find("\"text\":\"") + 8] = '#';
  write_bytes(file.out(), changed.substr(0, second));
  CHECK(file.ask_into_file().code == 0);
  CHECK(read_bytes(file.out()) == changed);
}

TEST_CASE("a run that is killed, interrupted or out of space loses and repeats nothing",
          "[cli][questions]") {
  const QuestionFile file;
  const std::string whole = file.whole();
  int cut = 0;
  for (const std::uintmax_t bytes : {0U, 1U, 700U, 2000U}) {
    for (const int signal : {SIGKILL, SIGTERM}) {
      CAPTURE(bytes, signal);
      std::filesystem::remove_all(file.folder / "out");
      const CommandResult result = file.ask_into_file(
          {"--batch", "2"}, {.signal = signal,
                             .signal_when_file_in = (file.folder / "out").string(),
                             .signal_at_bytes = bytes});
      const std::string left = read_bytes(file.out());
      CHECK(whole.substr(0, left.size()) == left);
      if (left.size() < whole.size()) {
        ++cut;
        CHECK(result.code == 128 + signal);
        if (signal == SIGTERM) CHECK(result.err == "var: interrupted\n");
      }
      CHECK(file.ask_into_file({"--batch", "3"}).code == 0);
      CHECK(read_bytes(file.out()) == whole);
    }
  }
  CHECK(cut >= 4);
  std::filesystem::remove_all(file.folder / "out");
  CommandOptions full;
  full.file_size_limit = 1500;
  check_error(file.ask_into_file({}, full), 1, "can't be written");
  CHECK(file.ask_into_file().code == 0);
  CHECK(read_bytes(file.out()) == whole);
}

TEST_CASE("Ctrl-C ends answers to stdout behind a whole line", "[cli][questions]") {
  QuestionFile file;
  while (file.questions.size() < 200) file.questions.push_back(file.questions[0]);
  file.write();
  const CommandResult result = file.ask({}, {.interrupt_after = 1});
  CHECK(result.code == 130);
  CHECK(result.err == "var: interrupted\n");
  const std::size_t lines = lines_of(result.out).size();
  CHECK(lines > 0);
  CHECK(lines < 200);
}

TEST_CASE("a file of answers of another run is refused and kept", "[cli][questions]") {
  QuestionFile file;
  const auto refuse = [&](const std::string& content, const std::string& text,
                          const Arguments& flags = {}) {
    write_bytes(file.out(), content);
    check_error(file.ask_into_file(flags), 1, file.out() + text);
    CHECK(read_bytes(file.out()) == content);
  };
  const std::string whole = file.whole();
  const std::string torn = whole.substr(0, whole.size() / 2);
  refuse(torn, ": was made with other settings: p 0.6, now 0.3", {"--p", "0.3"});
  refuse(torn, ": was made with other settings: max_new_tokens 12, now 7",
         {"--max-new-tokens", "7"});
  refuse(torn, ": was made with other settings: image_mode \"auto\", now \"pad\"",
         {"--image-mode", "pad"});
  refuse(torn, ": was made with other settings: var true, now false", {"--no-var"});
  refuse(read_bytes(file.path()), ": is no file of answers");
  refuse(file.questions[0].dump(), ": is no file of answers");
  refuse("hello", ": is no file of answers");
  refuse(whole + whole.substr(0, whole.find('\n') + 1), ", line 7: an answer more than");
  refuse(whole.substr(whole.find('\n') + 1), ", line 1: the answer to question_id \"b\"");
  file.questions[1]["text"] = "What else?";
  file.write();
  refuse(torn,
         ", line 2: the answer to question_id \"b\", \"Is there a dog? \\\"Yes\\\" or no\"; " +
             file.path() + ", line 2 has \"b\", \"What else?\"");
  // Another model under the same name.
  const std::string model = (file.folder / "model.pt").string();
  std::filesystem::copy_file(golden_archive("mha"), model);
  const auto ask = [&] {
    return run_command({"ask", model, "--questions", file.path(), "--images",
                        (file.folder / "images").string(), "--device", "cpu", "--dtype", "fp32",
                        "--max-new-tokens", "12", "--out", file.out()});
  };
  std::filesystem::remove(file.out());
  REQUIRE(ask().code == 0);
  const std::string before = read_bytes(file.out());
  std::filesystem::copy_file(golden_archive("odd"), model,
                             std::filesystem::copy_options::overwrite_existing);
  check_error(ask(), 1, ": was made with other settings: archive \"");
  CHECK(read_bytes(file.out()) == before);
}

TEST_CASE("a question that can't be answered is named by its line", "[cli][questions]") {
  QuestionFile file;
  const std::string whole = file.whole();
  const std::size_t third = whole.find('\n', whole.find('\n', whole.find('\n') + 1) + 1) + 1;
  // The picture of the fourth is found out when its turn comes.
  write_bytes(file.folder.path() / "images" / "wide.png", "no picture");
  const CommandResult damaged = file.ask_into_file();
  check_error(damaged, 1, file.path() + ", line 4: ");
  CHECK_THAT(damaged.err, Contains("wide.png"));
  CHECK(read_bytes(file.out()) == whole.substr(0, third));
  file.copy_image("wide.png", "wide.png");
  CHECK(file.ask_into_file().code == 0);
  CHECK(read_bytes(file.out()) == whole);

  std::filesystem::remove(file.folder.path() / "images" / "wide.png");
  const CommandResult missing = file.ask();
  check_error(missing, 1, file.path() + ", line 4: image ");
  CHECK(missing.out.empty());
  file.copy_image("wide.png", "wide.png");
  file.questions[2]["text"] = "Who is <image>?";
  file.write();
  check_error(file.ask(), 1, file.path() + ", line 3: ");
  write_bytes(file.path(), file.questions[0].dump() + "\n{\"question_id\": 2, \n");
  check_error(file.ask(), 1, file.path() + ", line 2: expected a JSON object");
  check_error(run_command({"ask", golden_archive("mha").string(), "--questions", "none.jsonl"}), 1,
              "none.jsonl: can't be read");
}

TEST_CASE("scorers want the label that ask --questions does without", "[cli][questions]") {
  const QuestionFile file;
  const auto knockout = [&](const std::string& scorer) {
    return run_command({"sinks", "knockout", golden_archive("mha").string(), "--questions",
                        file.path(), "--images", (file.folder / "images").string(), "--out",
                        (file.folder / "k.jsonl").string(), "--scorer", scorer});
  };
  check_error(knockout("exact"), 1, file.path() + ", line 1: label is missing");
  write_bytes(file.path(), file.questions[4].dump());
  check_error(knockout("yes_no"), 1, file.path() + ", line 1: scorer yes_no: expected");
}

TEST_CASE("ask --questions refuses what --memory does not suffice for", "[cli][questions]") {
  const QuestionFile file;
  check_error(file.ask({"--memory", "100kB"}), 1, "but only 100.0 kB are available");
  const CommandResult enough = file.ask({"--memory", "1GB"});
  INFO(enough.err);
  CHECK(enough.code == 0);
  CHECK(enough.out == file.whole());
}

TEST_CASE("flags that don't go with --questions are refused as usage", "[cli][questions]") {
  const QuestionFile file;
  const std::string model = golden_archive("mha").string();
  for (const Arguments& flags :
       {Arguments{"What?"}, Arguments{"--image", "a.png"}, Arguments{"--raw-prompt", "What?"},
        Arguments{"--compare"}, Arguments{"--json"}, Arguments{"--logits", "x.pt"}}) {
    CAPTURE(flags);
    const CommandResult result = file.ask(flags);
    const std::string name = flags[0][0] == '-' ? flags[0] : "QUESTION";
    check_error(result, 2, "excludes");
    CHECK_THAT(result.err, Contains(name) && Contains("--questions"));
  }
  for (const Arguments& flags : {Arguments{"--images", "."}, Arguments{"--out", "x.jsonl"},
                                 Arguments{"--output", "x.jsonl"}, Arguments{"--batch", "2"}}) {
    CAPTURE(flags);
    Arguments arguments = {"ask", model, "What?"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    check_error(run_command(arguments), 2, "requires --questions");
  }
  check_error(file.ask({"--batch", "0"}), 2, "--batch");
  check_error(run_command({"ask", model}), 2, "QUESTION (or --raw-prompt, --questions)");
}
