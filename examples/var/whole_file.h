#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace var_command {

/// A file that appears under its name only when it is complete.
class WholeFile {
 public:
  /// Makes the temporary file beside `path`, so that a folder that can't be written to is known
  /// early.
  /// @param what  of the file, for messages
  /// @throws libvar::ResourceError
  WholeFile(std::string what, std::filesystem::path path);
  /// Removes the temporary file.
  ~WholeFile();
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;

  /// @throws libvar::ResourceError  the disk is full
  void write(std::string_view bytes);

 private:
  std::string what_;
  std::filesystem::path path_, partial_;
};

}  // namespace var_command
