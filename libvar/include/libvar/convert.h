#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "libvar/request.h"

namespace libvar {

/// How a checkpoint becomes an archive.
struct ConvertOptions {
  std::string dtype = "auto";  ///< auto (the checkpoint's), fp32, bf16, fp16
  /// "" or "int8": the weights of the linear maps in the decoder's layers become int8, each row
  /// with a float32 scale of max |w| / 127, and half the memory of bf16. Embeddings, head, norms,
  /// biases, vision tower and projector keep `dtype`.
  std::string quantize = {};
  std::optional<std::vector<std::int64_t>> sink_dims =
      {};  ///< none: those known for the language model, if it is known
  std::optional<std::int64_t> first_layer = {};  ///< stored as the model's VAR default
  ProgressCallback on_progress = {};
};

/// Writes the archive `out` from a Hugging Face checkpoint directory (safetensors).
///
/// The file appears under its name only when it is complete. Anonymous memory does not grow with
/// the model.
/// @throws ArchiveError   the checkpoint is incomplete or not understood; names file and tensor
/// @throws ConfigError    options out of range
/// @throws ResourceError  the disk is full
void convert_checkpoint(const std::filesystem::path& checkpoint_dir,
                        const std::filesystem::path& out, const ConvertOptions& options = {});

/// Stores other sink dimensions in an archive; all else in it stays as it is.
///
/// A new file is written beside the archive and takes its name when it is complete: whatever goes
/// wrong, the archive is the old one or the new one. Models loaded from the old one stay valid.
/// Anonymous memory does not grow with the model.
/// @param dims    1 to 8 different dimensions
/// @param source  how they were found, for people
/// @throws ArchiveError   not an archive of this library; its folder can't be written to
/// @throws ConfigError    dims out of range
/// @throws ResourceError  the disk is full
void save_sink_dimensions(const std::filesystem::path& archive,
                          const std::vector<std::int64_t>& dims, const std::string& source,
                          const ProgressCallback& on_progress = {});

/// What an archive says of itself.
struct ArchiveInfo {
  std::int64_t format_version = 0;
  std::string content_id;  ///< another one where a weight, name or extra file is another
  std::string family;
  std::string dtype;         ///< "float32", "bfloat16", "float16"
  std::string quantization;  ///< of the linear maps in the decoder's layers: "" or "int8"
  std::int64_t num_parameters = 0;
  std::int64_t file_bytes = 0;
  std::int64_t hidden_size = 0, intermediate_size = 0, num_layers = 0, num_heads = 0,
               num_kv_heads = 0, head_dim = 0;
  std::int64_t vocab_size = 0, context_length = 0;
  std::int64_t image_size = 0, patch_size = 0;  ///< pixels; image_size 0: of any size
  std::int64_t visual_tokens = 0;               ///< per image or tile; 0: its size decides
  std::string prompt_style, image_mode;         ///< the checkpoint's own
  std::vector<std::int64_t> sink_dims;
  std::string sink_dims_source;  ///< how they were found
  VarParams var_defaults;
};

/// Reads what an archive says of itself, no weights.
/// @throws ArchiveError
ArchiveInfo read_archive_info(const std::filesystem::path& path);

/// Reads the whole file and checks every checksum.
/// @throws ArchiveError  names the damaged record
void verify_archive(const std::filesystem::path& path, const ProgressCallback& on_progress = {});

}  // namespace libvar
