#pragma once

#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

namespace var_command {

/// Results of a long run, a JSON object a line behind a line with the settings; written as they
/// come, and gone on with after an interruption.
class ResultsFile {
 public:
  /// Opens the file, or makes it. A last line that was cut off is dropped.
  /// @throws libvar::InputError  it can't be written, or it was made with other settings
  ResultsFile(std::filesystem::path path, const nlohmann::ordered_json& settings);

  bool has(const std::string& id) const { return lines_.contains(id); }

  /// Writes a result, once for each id, and makes sure that it is in the file.
  void add(const std::string& id, const nlohmann::ordered_json& result);

  /// By id.
  const std::map<std::string, nlohmann::ordered_json>& lines() const { return lines_; }

 private:
  std::filesystem::path path_;
  std::ofstream out_;
  std::map<std::string, nlohmann::ordered_json> lines_;
};

}  // namespace var_command
