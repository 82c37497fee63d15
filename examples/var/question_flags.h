#pragma once

#include <CLI/App.hpp>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "flags.h"
#include "libvar/questions.h"

namespace var_command {

/// What the commands that run a question file share.
struct QuestionFlags {
  CommonFlags common;
  VarFlags var;
  std::string model, questions, images, out, scorer = "exact";
  std::int64_t max_new_tokens = 16;
  std::optional<std::size_t> limit;
  bool json = false;

  void add(CLI::App& command);
  /// Checks the flags and reads the questions; every label is one that the scorer takes.
  std::vector<libvar::Question> read() const;
  /// Loads the model, which must have sink dimensions.
  std::shared_ptr<const libvar::Model> open() const;
  libvar::Request request(const libvar::Question& question, const libvar::VarParams& var) const;
  bool is_right(const std::string& answer, const libvar::Question& question) const;
  /// What every line of results depends on; the command adds its own.
  nlohmann::ordered_json settings(const std::string& task) const;
};

/// Answers the questions that have no line of results yet, in order, with a bar; Ctrl-C ends it
/// between two questions. Gives the lines of all questions.
/// @param answer  a question and its place in the file -> its line, without question_id, text,
/// label
std::vector<nlohmann::ordered_json> run_questions(
    const std::string& out, const nlohmann::ordered_json& settings,
    const std::vector<libvar::Question>& questions,
    const std::function<nlohmann::ordered_json(const libvar::Question&, std::size_t place)>&
        answer);

/// Prints the summary of a run: as a JSON object, or with `print_table`. Gives the exit code.
int print_summary(bool json, const nlohmann::ordered_json& summary,
                  void (*print_table)(const nlohmann::ordered_json&));

}  // namespace var_command
