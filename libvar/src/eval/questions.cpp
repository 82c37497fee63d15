#include "libvar/questions.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "libvar/error.h"

namespace libvar {
namespace {

using nlohmann::json;

using Names = std::initializer_list<const char*>;

/// The member under the first of the names that is there; null: none is.
const json* find_member(const json& object, Names names) {
  for (const char* name : names) {
    const auto found = object.find(name);
    if (found != object.end()) return &*found;
  }
  return nullptr;
}

const json& member(const json& object, Names names, const std::string& where) {
  if (const json* found = find_member(object, names)) return *found;
  throw InputError(where + ": " + *names.begin() + " is missing");
}

std::string text_of(const json& value, const char* name, const std::string& where) {
  if (!value.is_string())
    throw InputError(where + ": " + name + ": expected a text, found " + value.dump());
  return value.get<std::string>();
}

std::vector<std::filesystem::path> images_of(const json& object,
                                             const std::filesystem::path& folder,
                                             const std::string& where) {
  const json* value = find_member(object, {"image"});
  if (value == nullptr || value->is_null()) return {};
  std::vector<std::filesystem::path> out;
  for (const json& name : value->is_array() ? *value : json::array({*value})) {
    out.push_back(folder / text_of(name, "image", where));
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(out.back(), ignored))
      throw InputError(where + ": image " + out.back().string() + " isn't there");
  }
  return out;
}

Question read_line(const std::string& line, const std::filesystem::path& images,
                   const std::string& where) {
  const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) throw InputError(where + ": expected a JSON object, found " + line);
  Question out;
  const json& id = member(object, {"question_id", "qid"}, where);
  if (!id.is_string() && !id.is_number_integer())
    throw InputError(where + ": question_id: expected a text or an integer, found " + id.dump());
  out.id = id.dump();
  out.images = images_of(object, images, where);
  out.text = text_of(member(object, {"text", "question", "prompt"}, where), "text", where);
  if (const json* label = find_member(object, {"label", "answer"}))
    out.label = text_of(*label, "label", where);
  return out;
}

std::string trimmed(const std::string& text) {
  const char* space = " \t\r\n";
  const std::size_t begin = text.find_first_not_of(space);
  if (begin == std::string::npos) return {};
  return text.substr(begin, text.find_last_not_of(space) - begin + 1);
}

bool says_no(const std::string& answer) {
  std::string text = answer.substr(0, answer.find('.'));
  text.erase(std::remove(text.begin(), text.end(), ','), text.end());
  text = " " + text + " ";
  for (const char* word : {" No ", " no ", " not "}) {
    if (text.find(word) != std::string::npos) return true;
  }
  return false;
}

}  // namespace

std::vector<Question> read_questions(const std::filesystem::path& file,
                                     const std::filesystem::path& images,
                                     const QuestionNeeds& needs) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw InputError(file.string() + ": can't be read");
  std::vector<Question> out;
  std::set<std::string> ids;
  std::int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (trimmed(line).empty()) continue;
    const std::string where = c10::str(file.string(), ", line ", number);
    out.push_back(read_line(line, images, where));
    out.back().line = number;
    if (needs.label && !out.back().label) throw InputError(where + ": label is missing");
    if (needs.image && out.back().images.empty()) throw InputError(where + ": image is missing");
    if (needs.unique_id && !ids.insert(out.back().id).second)
      throw InputError(where + ": question_id " + out.back().id + " stands twice");
  }
  if (out.empty()) throw InputError(file.string() + ": holds no questions");
  return out;
}

Scorer parse_scorer(std::string_view name) {
  if (name == "exact") return Scorer::kExact;
  if (name == "yes_no") return Scorer::kYesNo;
  throw ConfigError(c10::str("scorer: expected exact or yes_no, found '", name, "'"));
}

bool is_right(Scorer scorer, const std::string& answer, const std::string& label) {
  if (scorer == Scorer::kExact) return trimmed(answer) == trimmed(label);
  std::string wanted = trimmed(label);
  std::transform(wanted.begin(), wanted.end(), wanted.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (wanted != "yes" && wanted != "no")
    throw InputError("scorer yes_no: expected the label yes or no, found '" + label + "'");
  return says_no(answer) == (wanted == "no");
}

}  // namespace libvar
