#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace libvar {

/// One line of a question file.
struct Question {
  std::string id;               ///< question_id or qid as JSON: 7, "a7"
  std::filesystem::path image;  ///< in the folder of the images
  std::string text;             ///< text, question or prompt
  std::string label;            ///< label or answer; the right answer
};

/// Reads a question file: JSON Lines as LLaVA's evaluation has them, one object a line with
/// `question_id` (or `qid`), `image`, `text` (or `question`, `prompt`) and `label` (or `answer`).
///
/// @throws InputError  the file can't be read, a line is no such object, an id stands twice, an
///                     image isn't there; the line is named
std::vector<Question> read_questions(const std::filesystem::path& file,
                                     const std::filesystem::path& images);

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
