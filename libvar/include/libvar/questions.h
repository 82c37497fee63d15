#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// One line of a question file.
struct Question {
  std::string id;                                  ///< question_id or qid as JSON: 7, "a7"
  std::vector<std::filesystem::path> images = {};  ///< in the folder of the images
  std::string text;                                ///< text, question or prompt
  std::optional<std::string> label = {};           ///< label or answer; the right answer
  std::int64_t line = 0;                           ///< of the file, from 1
};

/// What every question of a file must have.
struct QuestionNeeds {
  bool label = false;
  bool image = false;
  bool unique_id = false;  ///< LLaVA's TextVQA file gives questions about one picture one id
};

/// Reads a question file: JSON Lines as LLaVA's evaluation has them, one object a line with
/// `question_id` (or `qid`), `image` (a name, a list of names, or none), `text` (or `question`,
/// `prompt`) and, where the right answer is known, `label` (or `answer`).
///
/// @throws InputError  the file can't be read, a line is no such object or lacks what it needs, an
///                     image isn't there; the line is named
std::vector<Question> read_questions(const std::filesystem::path& file,
                                     const std::filesystem::path& images,
                                     const QuestionNeeds& needs = {});

/// When an answer is right.
enum class Scorer {
  kExact,  ///< answer and label are equal but for white space around them
  /// POPE's published rule: of the text before the first '.', commas left out, an answer is "no"
  /// when one of the words between single spaces is No, no or not, else "yes".
  kYesNo,
};

/// "exact" or "yes_no".
/// @throws ConfigError  another name
Scorer parse_scorer(std::string_view name);

/// @throws InputError  kYesNo with a label that is neither yes nor no
bool is_right(Scorer scorer, const std::string& answer, const std::string& label);

}  // namespace libvar
