#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "archive/mapped_file.h"
#include "families/family.h"
#include "libvar/request.h"

namespace libvar {

/// Version of the archive layout that this library reads and writes (libvar.json,
/// "format_version").
inline constexpr std::int64_t kArchiveFormatVersion = 1;

/// libvar.json: what the checkpoint's own files don't say.
struct ArchiveManifest {
  std::int64_t format_version = kArchiveFormatVersion;
  std::string family;
  std::string dtype;  ///< of the weights: "float32", "bfloat16", "float16"
  /// Of the linear maps in the decoder's layers: "" (none) or "int8". Then X.weight is int8 and
  /// X.weight_scale float32, one number for each row; the weight is their product.
  std::string quantization;
  SinkDimensions sink_dimensions;
  VarParams var_defaults;
};

std::string to_json_text(const ArchiveManifest& manifest);
/// libvar.json with other sink dimensions; every other key stays.
/// @param text  that parse_manifest has read
std::string replace_sink_dimensions(const std::string& text, const SinkDimensions& sinks);
/// @throws ArchiveError  names the key
ArchiveManifest parse_manifest(const std::string& text, const std::filesystem::path& archive);

/// A TorchScript archive used as a container: tensors by name and extra files. No code of it is
/// run.
class Archive {
 public:
  /// Maps the file and reads its directory and names.
  /// @throws ArchiveError  missing, not a zip, truncated, holds code, another format version
  static Archive open(const std::filesystem::path& path);

  /// Tensors by canonical name, on the CPU; their storage is the mapped file and stays valid while
  /// any of them lives.
  const std::map<std::string, at::Tensor>& tensors() const { return tensors_; }

  /// Extra files by name, libvar.json included.
  const CheckpointFiles& files() const { return files_; }

  const ArchiveManifest& manifest() const { return manifest_; }

  const std::filesystem::path& path() const { return file_->path(); }

  const std::shared_ptr<const MappedFile>& file() const { return file_; }

  /// See ArchiveInfo.
  const std::string& content_id() const { return content_id_; }

 private:
  std::shared_ptr<const MappedFile> file_;
  std::string content_id_;
  std::map<std::string, at::Tensor> tensors_;
  CheckpointFiles files_;
  ArchiveManifest manifest_;
};

/// The configuration that an archive describes; its tensors' names, shapes and dtype are checked
/// against it.
/// @throws ArchiveError  names the file, key or tensor
ModelConfig read_model_config(const Archive& archive);

/// A tensor to be written; `read` is called once, when its turn comes, and the result is dropped
/// afterwards.
struct TensorSource {
  std::string name;
  std::vector<std::int64_t> shape;
  at::ScalarType dtype;
  std::function<at::Tensor()> read;
};

/// Writes an archive to a temporary name beside `path` and renames it when it is complete.
/// @throws ResourceError  the disk is full; nothing is left behind
void write_archive(const std::filesystem::path& path, const std::vector<TensorSource>& tensors,
                   const CheckpointFiles& files, const ProgressCallback& on_progress = {});

}  // namespace libvar
