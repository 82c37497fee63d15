// var ask --questions: a file of questions, with the answers as LLaVA's evaluation writes them.

#include "ask_questions.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "answer_json.h"
#include "command.h"
#include "interrupt.h"
#include "libvar/batch_session.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "numbers.h"
#include "progress_bar.h"
#include "results_file.h"

namespace var_command {
namespace {

using nlohmann::ordered_json;

/// What every answer depends on beside question and pictures.
ordered_json settings_of(const std::string& model_path, const libvar::Model& model,
                         const libvar::Request& request) {
  const libvar::VarParams& var = request.var;
  const libvar::GenerationParams& generation = request.generation;
  ordered_json out = {{"archive", libvar::read_archive_info(model_path).content_id},
                      {"dtype", model.dtype()},
                      {"sink_dims", model.sink_dimensions()},
                      {"max_new_tokens", generation.max_new_tokens},
                      {"temperature", generation.temperature},
                      {"top_k", generation.top_k},
                      {"top_p", generation.top_p},
                      {"seed", generation.seed}};
  out.update(prompt_json(request));
  out["var"] = var.enabled;
  if (!var.enabled) return out;
  ordered_json params = params_json(var);
  params.erase("enabled");
  out.update(params);
  out.update(ordered_json{{"include_last_layer", var.include_last_layer},
                          {"ratio_epsilon", decimal(var.ratio_epsilon)},
                          {"generated_sinks", var.generated_sinks},
                          {"sources", var.sources},
                          {"targets", var.targets},
                          {"head_rule", static_cast<int>(var.head_rule)}});
  if (var.phi_epsilon) out["phi_epsilon"] = decimal(*var.phi_epsilon);
  return out;
}

std::string trimmed(const std::string& text) {
  const char* space = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(space);
  return begin == std::string::npos ? ""
                                    : text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

/// 64 bits of FNV-1a in hexadecimal digits.
std::string short_hash(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  std::array<char, 17> digits{};
  std::snprintf(digits.data(), digits.size(), "%016llx", static_cast<unsigned long long>(hash));
  return digits.data();
}

/// The answers' lines. They have the keys of LLaVA's answer files; the settings stand in each
/// line's metadata, since scorers take a first line with them for an answer.
class AnswersOut {
 public:
  /// @throws libvar::InputError  --out has other lines than answers to the first questions with
  /// these settings
  AnswersOut(const QuestionFileFlags& flags, const std::vector<libvar::Question>& questions,
             std::string model_id, ordered_json settings)
      : questions_(questions), model_id_(std::move(model_id)), settings_(std::move(settings)) {
    if (!flags.out) return;
    file_ = std::make_unique<LinesFile>(
        *flags.out, "answers", std::vector<std::string>{"{\"question_id\":"},
        [&](const ordered_json& line) { take(*flags.out, *flags.questions, line); });
  }

  /// Questions that are answered.
  std::size_t size() const { return size_; }

  /// The answer to the next question.
  void add(const libvar::Answer& answer) {
    const libvar::Question& question = questions_[size_++];
    const ordered_json line = {
        {"question_id", ordered_json::parse(question.id)},
        {"prompt", question.text},
        {"text", trimmed(answer.text)},
        {"answer_id", short_hash(settings_.dump() + question.id + question.text)},
        {"model_id", model_id_},
        {"metadata",
         {{"finish_reason", to_string(answer.finish_reason)}, {"settings", settings_}}}};
    if (file_) {
      file_->add(line);
    } else if (std::printf("%s\n", line.dump().c_str()) < 0 || std::fflush(stdout) != 0) {
      throw libvar::ResourceError("the output can't be written");
    }
  }

 private:
  /// A line of an earlier run: the answer to the next question.
  void take(const std::string& out, const std::string& file, const ordered_json& line) {
    const auto metadata = line.find("metadata");
    if (!line.contains("question_id") || !line.contains("prompt") || !line.contains("text") ||
        metadata == line.end() || !metadata->is_object() || !metadata->contains("settings"))
      throw libvar::InputError(out + ": is no file of answers");
    check_settings(out, metadata->at("settings"), settings_);
    const std::string where = out + ", line " + std::to_string(size_ + 1) + ": ";
    if (size_ == questions_.size())
      throw libvar::InputError(where + "an answer more than " + file + " has questions");
    const libvar::Question& question = questions_[size_++];
    if (line.at("question_id").dump() != question.id || line.at("prompt") != question.text) {
      throw libvar::InputError(where + "the answer to question_id " +
                               line.at("question_id").dump() + ", " + line.at("prompt").dump() +
                               "; " + file + ", line " + std::to_string(question.line) + " has " +
                               question.id + ", " + ordered_json(question.text).dump());
    }
  }

  const std::vector<libvar::Question>& questions_;
  std::string model_id_;
  ordered_json settings_;
  std::size_t size_ = 0;
  std::unique_ptr<LinesFile> file_;  // none: stdout
};

}  // namespace

CLI::Option* QuestionFileFlags::add(CLI::App& command) {
  const std::string group = "Question file";
  CLI::Option* file =
      command
          .add_option("--questions", questions,
                      "JSON Lines with question_id, image, text in place of QUESTION and --image; "
                      "answers are JSON Lines too")
          ->type_name("FILE.jsonl")
          ->group(group);
  command.add_option("--images", images, "Folder of the pictures; that of FILE.jsonl by default")
      ->type_name("DIR")
      ->group(group)
      ->needs(file);
  command
      .add_option("--out,--output", out,
                  "Answers, in place of stdout; gone on with where they are there")
      ->type_name("FILE")
      ->group(group)
      ->needs(file);
  command.add_option("--batch", batch, "Most questions that are answered together")
      ->capture_default_str()
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{1024}))
      ->type_name("N")
      ->group(group)
      ->needs(file);
  return file;
}

std::vector<libvar::Question> QuestionFileFlags::read() const {
  const std::filesystem::path file = questions.value_or("");
  return libvar::read_questions(file, images ? std::filesystem::path(*images) : file.parent_path());
}

int answer_questions(const QuestionFileFlags& flags, const std::vector<libvar::Question>& questions,
                     const std::string& model_path,
                     const std::shared_ptr<const libvar::Model>& model,
                     const libvar::Request& request, const libvar::SessionOptions& session_options,
                     const CommonFlags& common) {
  const InterruptScope interrupt;  // before the file of answers is there
  AnswersOut answers(flags, questions, std::filesystem::path(model_path).stem().string(),
                     settings_of(model_path, *model, request));
  std::vector<libvar::Request> requests(questions.size() - answers.size(), request);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    const libvar::Question& question = questions[answers.size() + i];
    requests[i].images.assign(question.images.begin(), question.images.end());
    requests[i].question = question.text;
  }
  libvar::BatchOptions options;
  options.batch = flags.batch;
  options.cuda_graph = session_options.cuda_graph;
  options.memory_bytes = session_options.memory_bytes;
  libvar::BatchSession session(model, options);
  ProgressBar bar("questions", ProgressBar::Unit::kPieces);
  const auto begin = std::chrono::steady_clock::now();
  std::size_t tokens = 0;
  const auto on_answer = [&](std::size_t, const libvar::Answer& answer) {
    answers.add(answer);
    tokens += answer.tokens.size();
    bar.update(static_cast<std::int64_t>(answers.size()),
               static_cast<std::int64_t>(questions.size()));
    return true;
  };
  try {
    session.ask(requests, on_answer, [] { return InterruptScope::interrupted() == 0; });
  } catch (const libvar::InputError& error) {
    if (answers.size() == questions.size()) throw;
    throw libvar::InputError(*flags.questions + ", line " +
                             std::to_string(questions[answers.size()].line) + ": " + error.what());
  }
  if (answers.size() < questions.size()) InterruptScope::check();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  std::array<char, 128> text{};
  std::snprintf(text.data(), text.size(), "%zu questions in %.2f s, %.1f tokens/s", requests.size(),
                seconds.count(), static_cast<double>(tokens) / seconds.count());
  common.log(text.data());
  return kDone;
}

}  // namespace var_command
