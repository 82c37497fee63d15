#include "whole_file.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "libvar/error.h"

namespace var_command {

WholeFile::WholeFile(std::string what, std::filesystem::path path)
    : what_(std::move(what)),
      path_(std::move(path)),
      partial_(path_.string() + ".partial-" + std::to_string(getpid())) {
  if (std::filesystem::is_directory(path_)) {
    throw libvar::ResourceError(what_ + " " + path_.string() +
                                ": is a directory, expected a file name");
  }
  if (!std::ofstream(partial_, std::ios::binary)) {
    throw libvar::ResourceError(what_ + " " + path_.string() +
                                ": can't be created: " + std::strerror(errno));
  }
}

WholeFile::~WholeFile() {
  std::error_code ignored;
  std::filesystem::remove(partial_, ignored);
}

void WholeFile::write(std::string_view bytes) {
  std::ofstream file(partial_, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) {
    throw libvar::ResourceError(what_ + " " + path_.string() +
                                ": can't be written: " + std::strerror(errno));
  }
  std::error_code error;
  std::filesystem::rename(partial_, path_, error);
  if (error)
    throw libvar::ResourceError(what_ + " " + path_.string() +
                                ": can't be renamed to: " + error.message());
}

}  // namespace var_command
