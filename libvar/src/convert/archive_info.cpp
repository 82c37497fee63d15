#include <filesystem>

#include "archive/archive.h"
#include "libvar/convert.h"
#include "quantized_names.h"

namespace libvar {

ArchiveInfo read_archive_info(const std::filesystem::path& path) {
  const Archive archive = Archive::open(path);
  const ModelConfig config = read_model_config(archive);
  ArchiveInfo out;
  out.format_version = archive.manifest().format_version;
  out.content_id = archive.content_id();
  out.family = archive.manifest().family;
  out.dtype = archive.manifest().dtype;
  out.quantization = archive.manifest().quantization;
  for (const auto& [name, tensor] : archive.tensors()) {
    if (!is_scale_name(name)) out.num_parameters += tensor.numel();
  }
  out.file_bytes = static_cast<std::int64_t>(std::filesystem::file_size(path));
  out.hidden_size = config.decoder.hidden_size;
  out.intermediate_size = config.decoder.intermediate_size;
  out.num_layers = config.decoder.num_layers;
  out.num_heads = config.decoder.num_heads;
  out.num_kv_heads = config.decoder.num_kv_heads;
  out.head_dim = config.decoder.head_dim;
  out.vocab_size = config.decoder.vocab_size;
  out.context_length = config.decoder.max_positions;
  out.image_size = config.vision.image_size;
  out.patch_size = config.vision.patch_size;
  out.visual_tokens = config.visual_tokens;
  out.prompt_style = to_string(config.prompt_style);
  out.image_mode = to_string(config.image.mode);
  out.sink_dims = archive.manifest().sink_dimensions.dims;
  out.sink_dims_source = archive.manifest().sink_dimensions.source;
  out.var_defaults = archive.manifest().var_defaults;
  return out;
}

}  // namespace libvar
