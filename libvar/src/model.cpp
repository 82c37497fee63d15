#include "libvar/model.h"

#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "archive/archive.h"
#include "archive/mapped_file.h"
#include "archive/page_fetcher.h"
#include "decoder/sequence.h"
#include "device.h"
#include "families/family.h"
#include "families/json_fields.h"
#include "families/sink_dimensions.h"
#include "families/tokenizer_check.h"
#include "libvar/error.h"
#include "loaded_model.h"
#include "quantized_names.h"
#include "resource_errors.h"

namespace libvar {
namespace {

constexpr std::int64_t kMaxCudaHeadDim = 256;  // ops.h: attention

/// What is left free beside a copy of the weights that nobody asked for.
constexpr std::int64_t kHeadroomBytes = std::int64_t{2} << 30;

std::string gigabytes(std::int64_t bytes) {
  return c10::str((bytes + 50'000'000) / 1'000'000'000, ".",
                  (bytes + 50'000'000) / 100'000'000 % 10, " GB");
}

/// Bytes of new memory that the tensors take at `dtype` on the CPU; those of this dtype, int8
/// weights and their scales stay in the mapping.
std::int64_t bytes_to_convert(const TensorMap& tensors, at::ScalarType dtype) {
  std::int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    if (tensor.scalar_type() != dtype && tensor.scalar_type() != at::kChar && !is_scale_name(name))
      bytes += tensor.numel() * static_cast<std::int64_t>(c10::elementSize(dtype));
  }
  return bytes;
}

at::ScalarType choose_dtype(const Archive& archive, const LoadOptions& options, at::Device device) {
  const bool is_auto = options.dtype == "auto";
  at::ScalarType dtype = at::kFloat;
  if (!is_auto) {
    dtype = parse_dtype(options.dtype);
  } else if (!device.is_cpu()) {
    dtype = parse_dtype(archive.manifest().dtype);
  } else if (cpu_has_bfloat16_products()) {
    dtype = at::kBFloat16;
  }
  if (!device.is_cpu()) return dtype;
  const std::int64_t needed = bytes_to_convert(archive.tensors(), dtype),
                     available = available_host_bytes();
  if (available >= 0 && needed > available) {
    throw ResourceError(c10::str(archive.path().string(), ": at ", dtype_name(dtype),
                                 " the weights need ", gigabytes(needed), " of memory, but only ",
                                 gigabytes(available), " are available; ", archive.manifest().dtype,
                                 " is used in place and needs none"));
  }
  return dtype;
}

/// Bytes of all tensors at the dtype of the computation.
std::int64_t weight_bytes(const TensorMap& tensors, at::ScalarType dtype) {
  std::int64_t bytes = bytes_to_convert(tensors, dtype);
  for (const auto& [name, tensor] : tensors) {
    if (tensor.scalar_type() == dtype || tensor.scalar_type() == at::kChar || is_scale_name(name))
      bytes += static_cast<std::int64_t>(tensor.nbytes());
  }
  return bytes;
}

bool copies_weights(const Archive& archive, const LoadOptions& options,
                    const ComputeTarget& target) {
  if (options.weights != "auto" && options.weights != "copy" && options.weights != "map") {
    throw ConfigError(c10::str("weights: expected auto, copy or map, got '", options.weights, "'"));
  }
  if (!target.device.is_cpu() || options.weights == "map") return false;
  const std::int64_t needed = weight_bytes(archive.tensors(), target.dtype),
                     available = available_host_bytes();
  if (options.weights == "auto")
    return available >= 0 && needed + needed / 8 + kHeadroomBytes <= available;
  if (available >= 0 && needed > available) {
    throw ResourceError(c10::str(archive.path().string(), ": a copy of the weights needs ",
                                 gigabytes(needed), " of memory, but only ", gigabytes(available),
                                 " are available; mapped they need none"));
  }
  return true;
}

std::unique_ptr<Tokenizer> read_tokenizer(const Archive& archive, const ModelConfig& config) {
  try {
    std::unique_ptr<Tokenizer> tokenizer = load_tokenizer(archive.files());
    check_tokenizer(*tokenizer, config);
    return tokenizer;
  } catch (const ArchiveError& error) {
    throw ArchiveError(c10::str(archive.path().string(), ": ", error.what()));
  }
}

ArchiveManifest with_sinks(ArchiveManifest manifest, SinkDimensions sinks) {
  manifest.sink_dimensions = std::move(sinks);
  return manifest;
}

std::unique_ptr<LoadedModel> load_archive(const std::filesystem::path& path,
                                          const LoadOptions& options) {
  const at::Device device = parse_device(options.device);
  if (options.dtype != "auto") parse_dtype(options.dtype);
  const Archive archive = Archive::open(path);
  ModelConfig config = read_model_config(archive);
  std::unique_ptr<Tokenizer> tokenizer = read_tokenizer(archive, config);
  if (device.is_cuda() && config.decoder.head_dim > kMaxCudaHeadDim) {
    throw ConfigError(c10::str(path.string(), ": its head size of ", config.decoder.head_dim,
                               " is above ", kMaxCudaHeadDim,
                               ", the largest of the CUDA kernels; use the CPU"));
  }
  ComputeTarget target;
  target.device = device;
  target.dtype = choose_dtype(archive, options, device);
  target.fuse_projections = !device.is_cpu();
  target.copies_weights = copies_weights(archive, options, target);
  WeightReader::Hooks hooks{{}, forget_pages, options.on_progress};
  // Weights that are used in place would be read page by page, by the first prompt; of those that
  // don't fit, the first would be gone before they are used.
  const std::int64_t available = available_host_bytes();
  if (!device.is_cpu() || target.copies_weights || available < 0 ||
      weight_bytes(archive.tensors(), target.dtype) <= available) {
    hooks.before_read = [fetcher = std::make_shared<PageFetcher>(archive.file())](
                            const at::Tensor& view) { fetcher->fetch(view); };
  }
  return std::make_unique<LoadedModel>(std::move(config), archive.manifest(), std::move(tokenizer),
                                       archive.tensors(), target, std::move(hooks));
}

}  // namespace

LoadedModel::LoadedModel(ModelConfig model_config, ArchiveManifest archive_manifest,
                         std::unique_ptr<Tokenizer> model_tokenizer, const TensorMap& tensors,
                         const ComputeTarget& compute_target, WeightReader::Hooks hooks)
    : LoadedModel(std::move(model_config), std::move(archive_manifest), std::move(model_tokenizer),
                  WeightReader(tensors, compute_target, std::move(hooks))) {}

LoadedModel::LoadedModel(ModelConfig model_config, ArchiveManifest archive_manifest,
                         std::unique_ptr<Tokenizer> model_tokenizer, const WeightReader& weights)
    : config(std::move(model_config)),
      manifest(std::move(archive_manifest)),
      tokenizer(std::move(model_tokenizer)),
      target(weights.target()),
      decoder(config.decoder, manifest.sink_dimensions.dims, weights.scope(config.decoder_scope)),
      vision_(make_vision_encoder(config.vision, config.decoder.hidden_size, weights)) {}

LoadedModel::LoadedModel(const LoadedModel& other, SinkDimensions sink_dimensions)
    : config(other.config),
      manifest(with_sinks(other.manifest, std::move(sink_dimensions))),
      tokenizer(other.tokenizer),
      target(other.target),
      decoder(other.decoder.with_sink_dims(manifest.sink_dimensions.dims)),
      load_ms(other.load_ms),
      vision_(other.vision_) {}

bool LoadedModel::is_stop_token(std::int64_t token) const {
  return std::find(config.stop_tokens.begin(), config.stop_tokens.end(), token) !=
         config.stop_tokens.end();
}

std::int64_t LoadedModel::image_token() const {
  return config.image_token_id.value_or(kNoImageToken);
}

VarParams LoadedModel::var_defaults() const {
  VarParams params = manifest.var_defaults;
  if (!params.first_layer)
    params.first_layer = std::min(kDefaultFirstLayer, config.decoder.num_layers - 1);
  if (manifest.sink_dimensions.dims.empty()) params.enabled = false;
  return params;
}

Model::Model(std::unique_ptr<LoadedModel> loaded) : loaded_(std::move(loaded)) {}

Model::~Model() = default;

std::shared_ptr<const Model> Model::load(const std::filesystem::path& path,
                                         const LoadOptions& options) {
  const auto begin = std::chrono::steady_clock::now();
  const c10::InferenceMode inference;
  return with_resource_errors(path.string(), [&] {
    std::unique_ptr<LoadedModel> loaded = load_archive(path, options);
    synchronize(loaded->target.device);
    loaded->load_ms =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    return std::shared_ptr<const Model>(new Model(std::move(loaded)));
  });
}

std::shared_ptr<const Model> Model::with_sink_dimensions(const std::vector<std::int64_t>& dims,
                                                         const std::string& source) const {
  const c10::InferenceMode inference;
  check_sink_dimensions(dims, loaded_->config.decoder.hidden_size);
  return with_resource_errors("model", [&] {
    return std::shared_ptr<const Model>(
        new Model(std::make_unique<LoadedModel>(*loaded_, SinkDimensions{dims, source})));
  });
}

const std::vector<std::int64_t>& Model::sink_dimensions() const {
  return loaded_->manifest.sink_dimensions.dims;
}

const std::string& Model::family() const {
  return loaded_->config.family;
}

std::string Model::device() const {
  return loaded_->target.device.str();
}

std::string Model::dtype() const {
  return dtype_name(loaded_->target.dtype);
}

std::int64_t Model::num_layers() const {
  return loaded_->config.decoder.num_layers;
}

std::int64_t Model::context_length() const {
  return loaded_->config.decoder.max_positions;
}

VarParams Model::var_defaults() const {
  return loaded_->var_defaults();
}

bool Model::has_sink_dimensions() const {
  return !loaded_->manifest.sink_dimensions.dims.empty();
}

double Model::load_ms() const {
  return loaded_->load_ms;
}

}  // namespace libvar
