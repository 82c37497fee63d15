#include "libvar/convert.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <functional>
#include <set>
#include <system_error>
#include <utility>

#include "archive/archive.h"
#include "convert/checkpoint.h"
#include "convert/quantize.h"
#include "families/json_fields.h"
#include "families/sink_dimensions.h"
#include "families/tokenizer_check.h"
#include "libvar/error.h"
#include "quantized_names.h"
#include "text/tokenizer.h"

namespace libvar {
namespace {

at::ScalarType parse_dtype(const std::string& name, at::ScalarType automatic) {
  if (name == "auto") return automatic;
  if (name == "fp32") return at::kFloat;
  if (name == "bf16") return at::kBFloat16;
  if (name == "fp16") return at::kHalf;
  throw ConfigError("dtype: expected auto, fp32, bf16 or fp16, found " + name);
}

void check_options(const ConvertOptions& options) {
  parse_dtype(options.dtype, at::kFloat);
  if (!options.quantize.empty() && options.quantize != "int8")
    throw ConfigError("quantize: expected int8, found " + options.quantize);
  if (options.first_layer && *options.first_layer < 0) {
    throw ConfigError("first_layer: expected 0 or more, found " +
                      std::to_string(*options.first_layer));
  }
}

std::int64_t count_infinite(const at::Tensor& tensor) {
  return tensor.isinf().sum().item<std::int64_t>();
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string out = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return out + "]";
}

/// A canonical tensor and the published one that it is, or is a part of.
struct PublishedTensor {
  CheckpointTensor tensor;
  std::function<at::Tensor(const at::Tensor&)> part;
  std::int64_t rows = 0;

  at::Tensor read() const {
    const at::Tensor whole = tensor.file->tensor(tensor.name);
    return part ? part(whole).contiguous() : whole;
  }

  std::vector<std::int64_t> shape() const {
    const std::vector<std::int64_t>& whole = tensor.entry().shape;
    if (!part) return whole;
    if (whole.empty() || whole.front() != rows) {
      throw ArchiveError(tensor.file->path().string() + ": tensor " + tensor.name + ": expected " +
                         std::to_string(rows) + " rows, as config.json says, found shape " +
                         shape_text(whole));
    }
    try {
      return part(at::empty(whole, at::TensorOptions(at::kMeta))).sizes().vec();
    } catch (const c10::Error&) {
      throw ArchiveError(tensor.file->path().string() + ": tensor " + tensor.name + ": its shape " +
                         shape_text(whole) + " can't be split as config.json says");
    }
  }
};

/// The tensor in another type. A finite value that float16 can't hold would become infinite: an
/// error.
at::Tensor read_as(const PublishedTensor& published, at::ScalarType dtype) {
  const CheckpointTensor& tensor = published.tensor;
  const at::Tensor source = published.read();
  if (source.scalar_type() == dtype) return source;
  at::Tensor out = source.to(dtype);
  if (dtype == at::kHalf && count_infinite(out) > count_infinite(source)) {
    const double largest = source.abs().max().item<double>();
    throw ArchiveError(tensor.file->path().string() + ": tensor " + tensor.name +
                       ": its largest magnitude " + std::to_string(largest) +
                       " does not fit float16, which ends at 65504; convert to bf16");
  }
  return out;
}

/// The tensor in float32, to be quantized.
at::Tensor read_finite(const PublishedTensor& published) {
  at::Tensor out = published.read().to(at::kFloat);
  if (!out.isfinite().all().item<bool>()) {
    throw ArchiveError(published.tensor.file->path().string() + ": tensor " +
                       published.tensor.name +
                       ": has values that are not finite, so it can't be "
                       "quantized");
  }
  return out;
}

std::set<std::string> quantizable_tensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::set<std::string> names;
  for (const TensorSpec& spec : checkpoint.family->expected_tensors(config)) {
    if (spec.is_quantizable) names.insert(spec.name);
  }
  return names;
}

[[noreturn]] void fail_missing(const Checkpoint& checkpoint, std::filesystem::path dir,
                               const std::string& canonical) {
  std::string name = checkpoint.family->published_name(canonical, checkpoint.files);
  for (const CheckpointPart& part : checkpoint.family->parts(checkpoint.files)) {
    if (!name.starts_with(part.tensor_prefix)) continue;
    dir /= part.folder;
    name.erase(0, part.tensor_prefix.size());
    break;
  }
  throw ArchiveError(dir.string() + ": tensor " + name + " is missing");
}

/// The published tensors under their canonical names. What the configuration asks for is checked;
/// the rest is kept, but for buffers and a head that is tied to the embeddings.
std::map<std::string, PublishedTensor> canonical_tensors(const Checkpoint& checkpoint,
                                                         const ModelConfig& config,
                                                         const std::filesystem::path& dir) {
  std::map<std::string, PublishedTensor> out;
  const std::string head = config.decoder_scope + "lm_head.weight";
  for (const auto& [name, tensor] : checkpoint.tensors) {
    for (CanonicalTensor& canonical : checkpoint.family->canonical_tensors(name, config)) {
      if (config.decoder.tie_word_embeddings && canonical.name == head) continue;
      const auto [found, is_new] = out.emplace(
          canonical.name, PublishedTensor{tensor, std::move(canonical.part), canonical.rows});
      if (!is_new) {
        throw ArchiveError(dir.string() + ": tensors " + found->second.tensor.name + " and " +
                           name + " both are " + canonical.name);
      }
    }
  }
  for (const TensorSpec& spec : checkpoint.family->expected_tensors(config)) {
    const auto found = out.find(spec.name);
    if (found == out.end()) fail_missing(checkpoint, dir, spec.name);
    const CheckpointTensor& tensor = found->second.tensor;
    if (const auto shape = found->second.shape(); shape != spec.shape) {
      throw ArchiveError(tensor.file->path().string() + ": tensor " + tensor.name +
                         ": expected shape " + shape_text(spec.shape) + ", found " +
                         shape_text(shape));
    }
  }
  return out;
}

/// What `call` gives; its ArchiveErrors begin with the folder.
template <typename Call>
auto in_folder(const std::filesystem::path& folder, const Call& call) {
  try {
    return call();
  } catch (const ArchiveError& error) {
    throw ArchiveError(folder.string() + ": " + error.what());
  }
}

std::filesystem::path tokenizer_folder(const std::filesystem::path& dir,
                                       const Checkpoint& checkpoint) {
  for (const CheckpointPart& part : checkpoint.family->parts(checkpoint.files)) {
    if (part.holds_tokenizer) return dir / part.folder;
  }
  return dir;
}

SinkDimensions choose_sinks(const ModelConfig& config, const ConvertOptions& options) {
  if (!options.sink_dims)
    return known_sink_dimensions(config.decoder).value_or(SinkDimensions{{}, "not known"});
  check_sink_dimensions(*options.sink_dims, config.decoder.hidden_size);
  return {*options.sink_dims, "given when the checkpoint was converted"};
}

/// The type of the checkpoint: what most of its bytes have, since config.json may say nothing or
/// something else.
at::ScalarType stored_dtype(const std::map<std::string, PublishedTensor>& tensors) {
  std::map<at::ScalarType, std::uint64_t> bytes;
  for (const auto& [name, published] : tensors) {
    const CheckpointTensor& tensor = published.tensor;
    bytes[tensor.file->dtype(tensor.name)] += tensor.entry().end - tensor.entry().begin;
  }
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  return std::max_element(bytes.begin(), bytes.end(), less)->first;
}

void refuse_overwriting(const std::filesystem::path& out, const std::filesystem::path& dir,
                        const Checkpoint& checkpoint) {
  std::error_code ignored;
  if (!std::filesystem::exists(out, ignored)) return;
  std::set<std::filesystem::path> inputs;
  for (const auto& [name, text] : checkpoint.files) inputs.insert(dir / name);
  for (const auto& [name, tensor] : checkpoint.tensors) inputs.insert(tensor.file->path());
  for (const std::filesystem::path& input : inputs) {
    if (std::filesystem::equivalent(out, input, ignored)) {
      throw ArchiveError(
          out.string() +
          ": is a file of the checkpoint itself; choose another name for the archive");
    }
  }
}

}  // namespace

void convert_checkpoint(const std::filesystem::path& checkpoint_dir,
                        const std::filesystem::path& out, const ConvertOptions& options) {
  check_options(options);
  Checkpoint checkpoint = open_checkpoint(checkpoint_dir);
  add_vision_folder(checkpoint_dir, checkpoint);
  const ModelConfig config =
      in_folder(checkpoint_dir, [&] { return checkpoint.family->read_config(checkpoint.files); });
  in_folder(tokenizer_folder(checkpoint_dir, checkpoint),
            [&] { check_tokenizer(*load_tokenizer(checkpoint.files), config); });
  if (options.first_layer && *options.first_layer >= config.decoder.num_layers) {
    throw ConfigError("first_layer: expected less than the model's " +
                      std::to_string(config.decoder.num_layers) + " layers, found " +
                      std::to_string(*options.first_layer));
  }
  const auto tensors = canonical_tensors(checkpoint, config, checkpoint_dir);
  refuse_overwriting(out, checkpoint_dir, checkpoint);

  ArchiveManifest manifest;
  manifest.family = checkpoint.family->name();
  manifest.sink_dimensions = choose_sinks(config, options);
  manifest.var_defaults.first_layer = options.first_layer;
  manifest.quantization = options.quantize;
  const at::ScalarType dtype = parse_dtype(options.dtype, stored_dtype(tensors));
  manifest.dtype = dtype_name(dtype);
  CheckpointFiles files = checkpoint.files;
  files["libvar.json"] = to_json_text(manifest);

  const std::set<std::string> quantized =
      options.quantize.empty() ? std::set<std::string>() : quantizable_tensors(checkpoint, config);
  std::vector<TensorSource> sources;
  for (const auto& [name, published] : tensors) {
    published.tensor.file->dtype(published.tensor.name);  // an error before anything is written
    if (quantized.contains(name)) {
      const std::vector<std::int64_t> shape = published.shape();
      sources.push_back({name, shape, at::kChar,
                         [&source = published] { return quantize_rows(read_finite(source)); }});
      sources.push_back({scale_name(name), {shape[0]}, at::kFloat, [&source = published] {
                           return row_scales(read_finite(source));
                         }});
      continue;
    }
    sources.push_back({name, published.shape(), dtype,
                       [&source = published, dtype] { return read_as(source, dtype); }});
  }
  write_archive(out, sources, files, options.on_progress);
}

}  // namespace libvar
