#include "question_flags.h"

#include <cstdio>

#include "command.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "progress_bar.h"
#include "results_file.h"
#include "sink_search.h"

namespace var_command {

using nlohmann::ordered_json;

void QuestionFlags::add(CLI::App& command) {
  command.add_option("MODEL.pt", model, "Archive written by var convert")->required();
  command.add_option("--questions", questions, "JSON Lines with question_id, image, text, label")
      ->required()
      ->type_name("FILE");
  command.add_option("--images", images, "Folder of the pictures")->required()->type_name("DIR");
  command.add_option("--out", out, "Results, a JSON object a line; gone on with where it is there")
      ->required()
      ->type_name("FILE");
  command.add_option("--scorer", scorer, "exact or yes_no")->capture_default_str();
  command.add_option("--limit", limit, "Only the first questions of the file");
  command.add_option("--max-new-tokens", max_new_tokens, "Most tokens of an answer")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{4096}))
      ->capture_default_str();
  command.add_flag("--json", json, "Print the summary as a JSON object");
  var.add(command);
  common.weights = "auto";  // many tokens are worth a copy
  common.add(command, "Type of the computation; auto fits the device");
}

std::vector<libvar::Question> QuestionFlags::read() const {
  common.apply();
  var.check();
  libvar::parse_scorer(scorer);
  std::vector<libvar::Question> out =
      libvar::read_questions(questions, images, {.label = true, .image = true, .unique_id = true});
  if (limit && out.size() > *limit) out.resize(*limit);
  for (const libvar::Question& question : out) {
    try {
      is_right("", question);
    } catch (const libvar::InputError& error) {
      throw libvar::InputError(questions + ", line " + std::to_string(question.line) + ": " +
                               error.what());
    }
  }
  return out;
}

std::shared_ptr<const libvar::Model> QuestionFlags::open() const {
  auto loaded = load_model(model, common);
  if (!loaded->has_sink_dimensions()) throw libvar::InputError(no_sink_dimensions(model));
  return loaded;
}

libvar::Request QuestionFlags::request(const libvar::Question& question,
                                       const libvar::VarParams& params) const {
  libvar::Request request;
  request.images.assign(question.images.begin(), question.images.end());
  request.question = question.text;
  request.var = params;
  request.generation.max_new_tokens = max_new_tokens;
  return request;
}

bool QuestionFlags::is_right(const std::string& answer, const libvar::Question& question) const {
  return libvar::is_right(libvar::parse_scorer(scorer), answer, question.label.value_or(""));
}

ordered_json QuestionFlags::settings(const std::string& task) const {
  return {{"task", task},
          {"model", model},
          {"questions", questions},
          {"scorer", scorer},
          {"max_new_tokens", max_new_tokens},
          {"dtype", common.dtype}};
}

std::vector<ordered_json> run_questions(
    const std::string& out, const ordered_json& settings,
    const std::vector<libvar::Question>& questions,
    const std::function<ordered_json(const libvar::Question&, std::size_t place)>& answer) {
  const InterruptScope interrupt;  // before the file of results is there
  ResultsFile results(out, settings);
  ProgressBar bar("questions", ProgressBar::Unit::kPieces);
  std::vector<ordered_json> lines;
  for (std::size_t i = 0; i < questions.size(); ++i) {
    InterruptScope::check();
    const libvar::Question& question = questions[i];
    if (!results.has(question.id)) {
      ordered_json line = {{"question_id", ordered_json::parse(question.id)},
                           {"text", question.text},
                           {"label", question.label.value_or("")}};
      line.update(answer(question, i));
      results.add(question.id, line);
    }
    lines.push_back(results.lines().at(question.id));
    bar.update(static_cast<std::int64_t>(i + 1), static_cast<std::int64_t>(questions.size()));
  }
  return lines;
}

int print_summary(bool json, const ordered_json& summary,
                  void (*print_table)(const ordered_json&)) {
  if (json) {
    std::printf("%s\n", summary.dump().c_str());
  } else {
    print_table(summary);
  }
  return kDone;
}

}  // namespace var_command
