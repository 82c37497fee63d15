#include "logits_file.h"

#include <torch/csrc/jit/serialization/pickle.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <vector>

#include "libvar/error.h"

namespace var_command {
namespace {

[[noreturn]] void fail(const std::filesystem::path& path, const char* what) {
  throw libvar::ResourceError("logits " + path.string() + ": " + what + ": " +
                              std::strerror(errno));
}

}  // namespace

LogitsFile::LogitsFile(std::filesystem::path path)
    : path_(std::move(path)), partial_(path_.string() + ".partial-" + std::to_string(getpid())) {
  if (std::filesystem::is_directory(path_)) {
    throw libvar::ResourceError("logits " + path_.string() +
                                ": is a directory, expected a file name");
  }
  if (!std::ofstream(partial_, std::ios::binary)) fail(path_, "can't be created");
}

LogitsFile::~LogitsFile() {
  std::error_code ignored;
  std::filesystem::remove(partial_, ignored);
}

void LogitsFile::write(const at::Tensor& logits) {
  const std::vector<char> bytes = torch::jit::pickle_save(logits);
  std::ofstream file(partial_, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) fail(path_, "can't be written");
  std::error_code error;
  std::filesystem::rename(partial_, path_, error);
  if (error)
    throw libvar::ResourceError("logits " + path_.string() +
                                ": can't be renamed to: " + error.message());
}

}  // namespace var_command
