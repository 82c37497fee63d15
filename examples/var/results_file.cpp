#include "results_file.h"

#include "libvar/error.h"

namespace var_command {

using nlohmann::ordered_json;

ResultsFile::ResultsFile(std::filesystem::path path, const ordered_json& settings)
    : path_(std::move(path)) {
  std::uintmax_t whole = 0;  // bytes of the lines that are complete
  if (std::ifstream in(path_, std::ios::binary); in) {
    bool first = true;
    for (std::string line; std::getline(in, line) && !in.eof();) {
      const ordered_json object = ordered_json::parse(line, nullptr, false);
      if (first ? !object.contains("settings") : !object.contains("question_id"))
        throw libvar::InputError(path_.string() + ": is no file of results");
      if (first && object.at("settings") != settings) {
        throw libvar::InputError(path_.string() + ": was made with other settings, " +
                                 object.at("settings").dump() + "; these are " + settings.dump());
      }
      if (!first) lines_.emplace(object.at("question_id").dump(), object);
      first = false;
      whole += line.size() + 1;
    }
    in.close();
    std::error_code error;
    std::filesystem::resize_file(path_, whole, error);
    if (error) throw libvar::InputError(path_.string() + ": " + error.message());
  }
  out_.open(path_, std::ios::binary | std::ios::app);
  if (whole == 0) out_ << ordered_json{{"settings", settings}}.dump() << '\n' << std::flush;
  if (!out_) throw libvar::InputError(path_.string() + ": can't be written");
}

void ResultsFile::add(const std::string& id, const ordered_json& result) {
  if (!lines_.emplace(id, result).second) return;
  out_ << result.dump() << '\n' << std::flush;
  if (!out_) throw libvar::InputError(path_.string() + ": can't be written");
}

}  // namespace var_command
