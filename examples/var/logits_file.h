#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>

namespace var_command {

/// A tensor file that appears under its name only when it is complete; torch.load reads it.
class LogitsFile {
 public:
  /// Makes the temporary file beside `path`, so that a folder that can't be written to is known
  /// early.
  /// @throws libvar::ResourceError
  explicit LogitsFile(std::filesystem::path path);
  /// Removes the temporary file.
  ~LogitsFile();
  LogitsFile(const LogitsFile&) = delete;
  LogitsFile& operator=(const LogitsFile&) = delete;

  /// @throws libvar::ResourceError  the disk is full
  void write(const at::Tensor& logits);

 private:
  std::filesystem::path path_, partial_;
};

}  // namespace var_command
