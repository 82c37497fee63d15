#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flags.h"
#include "libvar/questions.h"

namespace var_command {

/// --questions of ask and what belongs to it.
struct QuestionFileFlags {
  std::optional<std::string> questions, images, out;
  std::int64_t batch = 8;

  /// @return --questions
  CLI::Option* add(CLI::App& command);
  /// Reads the file.
  std::vector<libvar::Question> read() const;
};

/// Answers the questions in batches; a line for each, in their order, to --out or stdout. Those
/// that --out has an answer to are not asked again.
/// @param model_path       of the model
/// @param request          all but picture and question of each request
/// @param session_options  of them cuda_graph and memory_bytes
/// @return                 the exit code
int answer_questions(const QuestionFileFlags& flags, const std::vector<libvar::Question>& questions,
                     const std::string& model_path,
                     const std::shared_ptr<const libvar::Model>& model,
                     const libvar::Request& request, const libvar::SessionOptions& session_options,
                     const CommonFlags& common);

}  // namespace var_command
