#include "results_file.h"

#include <algorithm>

#include "libvar/error.h"

namespace var_command {

using nlohmann::ordered_json;

namespace {

/// A line without its end: its beginning is all that can be known of it.
bool was_cut(const std::string& line, const std::vector<std::string>& beginnings) {
  return std::any_of(beginnings.begin(), beginnings.end(), [&](const std::string& beginning) {
    const std::size_t size = std::min(line.size(), beginning.size());
    return line.compare(0, size, beginning, 0, size) == 0;
  });
}

}  // namespace

LinesFile::LinesFile(std::filesystem::path path, const std::string& content,
                     const std::vector<std::string>& beginnings, const See& see)
    : path_(std::move(path)) {
  std::uintmax_t whole = 0;  // bytes of the lines that are complete
  bool ended = true;         // the last of them with a line break
  if (std::ifstream in(path_, std::ios::binary); in) {
    for (std::string line; std::getline(in, line);) {
      ended = !in.eof();
      const ordered_json object = ordered_json::parse(line, nullptr, false);
      if (!object.is_object()) {
        if (ended || !was_cut(line, beginnings))
          throw libvar::InputError(path_.string() + ": is no file of " + content);
        ended = true;
        break;
      }
      see(object);
      whole += line.size() + (ended ? 1 : 0);
    }
    in.close();
    std::error_code error;
    if (std::filesystem::file_size(path_, error) != whole && !error)
      std::filesystem::resize_file(path_, whole, error);
    if (error) throw libvar::InputError(path_.string() + ": " + error.message());
  }
  out_.open(path_, std::ios::binary | std::ios::app);
  if (!ended) out_ << '\n' << std::flush;
  if (!out_) throw libvar::InputError(path_.string() + ": can't be written");
}

void LinesFile::add(const ordered_json& line) {
  out_ << line.dump() + '\n' << std::flush;
  if (!out_) throw libvar::ResourceError(path_.string() + ": can't be written");
}

void check_settings(const std::filesystem::path& file, const ordered_json& made_with,
                    const ordered_json& now) {
  if (made_with == now) return;
  const auto text = [](const ordered_json& object, const std::string& key) {
    return object.contains(key) ? object.at(key).dump() : "nothing";
  };
  std::string differences;
  const auto note = [&](const std::string& key) {
    differences += (differences.empty() ? " " : "; ") + key + " " + text(made_with, key) +
                   ", now " + text(now, key);
  };
  for (const auto& [key, value] : made_with.items()) {
    if (!now.contains(key) || now.at(key) != value) note(key);
  }
  for (const auto& [key, value] : now.items()) {
    if (!made_with.contains(key)) note(key);
  }
  throw libvar::InputError(file.string() + ": was made with other settings:" + differences);
}

ResultsFile::ResultsFile(const std::filesystem::path& path, const ordered_json& settings)
    : file_(path, "results", {"{\"settings\":", "{\"question_id\":"},
            [&](const ordered_json& line) {
              if (!line.contains(begun_ ? "question_id" : "settings"))
                throw libvar::InputError(path.string() + ": is no file of results");
              if (begun_) {
                lines_.emplace(line.at("question_id").dump(), line);
              } else {
                check_settings(path, line.at("settings"), settings);
              }
              begun_ = true;
            }) {
  if (!begun_) file_.add({{"settings", settings}});
}

void ResultsFile::add(const std::string& id, const ordered_json& result) {
  if (lines_.emplace(id, result).second) file_.add(result);
}

}  // namespace var_command
