#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace var_command {

/// JSON objects, a line each, written as they come, and gone on with after an interruption at any
/// moment.
class LinesFile {
 public:
  using See = std::function<void(const nlohmann::ordered_json& line)>;

  /// Opens the file, or makes it, and shows the lines that are there. A last line that was cut off
  /// is dropped; a file that is refused stays as it is.
  /// @param content     of the file, for messages: "results"
  /// @param beginnings  a line begins with one of them
  /// @param see         throws at a line that doesn't belong there
  /// @throws libvar::InputError  it can't be opened, or is no such file
  LinesFile(std::filesystem::path path, const std::string& content,
            const std::vector<std::string>& beginnings, const See& see);

  /// Writes a line and makes sure that it is in the file.
  void add(const nlohmann::ordered_json& line);

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  std::ofstream out_;
};

/// @throws libvar::InputError  names the settings that differ from those that `file` was made with
void check_settings(const std::filesystem::path& file, const nlohmann::ordered_json& made_with,
                    const nlohmann::ordered_json& now);

/// Results of a long run by id, behind a line with the settings.
class ResultsFile {
 public:
  /// @throws libvar::InputError  it can't be written, or it was made with other settings
  ResultsFile(const std::filesystem::path& path, const nlohmann::ordered_json& settings);

  bool has(const std::string& id) const { return lines_.contains(id); }

  /// Writes a result, once for each id.
  void add(const std::string& id, const nlohmann::ordered_json& result);

  /// By id.
  const std::map<std::string, nlohmann::ordered_json>& lines() const { return lines_; }

 private:
  bool begun_ = false;  // the settings are there
  std::map<std::string, nlohmann::ordered_json> lines_;
  LinesFile file_;
};

}  // namespace var_command
