#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "archive/mapped_file.h"

namespace libvar {

/// A tensor as the header of a safetensors file describes it.
struct SafetensorsEntry {
  std::string dtype;  ///< "F32", "BF16", ...
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< bytes of the file
};

/// One safetensors file, mapped.
class SafetensorsFile {
 public:
  /// Maps the file and checks its header: length, JSON, places within the file, sizes, no two
  /// tensors in one place.
  /// @throws ArchiveError  names file and tensor
  static SafetensorsFile open(const std::filesystem::path& path);

  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }

  const std::filesystem::path& path() const { return file_->path(); }

  /// Type of a tensor.
  /// @throws ArchiveError  another type than float32, float16, bfloat16; names the tensor
  at::ScalarType dtype(const std::string& name) const;

  /// A view of the mapped file that keeps it mapped; a copy where the tensor is not aligned in it.
  at::Tensor tensor(const std::string& name) const;

 private:
  explicit SafetensorsFile(std::shared_ptr<const MappedFile> file) : file_(std::move(file)) {}

  void read_header();
  void check_places() const;

  std::shared_ptr<const MappedFile> file_;
  std::map<std::string, SafetensorsEntry> entries_;
};

/// A tensor of a checkpoint and the file that holds it.
struct CheckpointTensor {
  std::shared_ptr<const SafetensorsFile> file;
  std::string name;  ///< in the file

  const SafetensorsEntry& entry() const { return file->entries().at(name); }
};

/// The tensors of a checkpoint folder: those of model.safetensors.index.json, or of its one
/// safetensors file.
/// @throws ArchiveError  no weights, pickles only, a shard or a listed tensor is missing
std::map<std::string, CheckpointTensor> open_checkpoint_tensors(const std::filesystem::path& dir);

}  // namespace libvar
