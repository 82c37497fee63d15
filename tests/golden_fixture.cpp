#include "golden_fixture.h"

#include <ATen/ops/empty.h>

#include <cstdint>
#include <stdexcept>
#include <utility>

#include "libvar/convert.h"
#include "temporary_folder.h"

namespace libvar::testing {
namespace {

using nlohmann::json;

constexpr const char* kTower = "vision_tower.vision_model.";

std::uint64_t fnv1a64(const std::string& text) {
  std::uint64_t value = 0xCBF29CE484222325U;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3U;
  return value;
}

std::uint64_t splitmix64(std::uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9U;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBU;
  return z ^ (z >> 31);
}

/// fl(fl(u * scale) + offset): two roundings. The volatile keeps a compiler from fusing them into
/// one.
float value_at(std::uint64_t seed, std::uint64_t index, float scale, float offset) {
  const std::uint64_t z = splitmix64(seed + (index + 1) * 0x9E3779B97F4A7C15U);
  const float unit = static_cast<float>(static_cast<std::int64_t>(z >> 40) - (1 << 23)) * 0x1p-23F;
  const volatile float scaled = unit * scale;
  return scaled + offset;
}

void apply_override(float* data, std::int64_t numel, const json& change) {
  const auto begin = change.at("begin").get<std::int64_t>();
  const auto count = change.at("count").get<std::int64_t>();
  const auto stride = change.at("stride").get<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t at = begin + i * stride;
    if (at >= numel) throw std::runtime_error("golden override past the end: " + change.dump());
    if (change.contains("set")) {
      data[at] = change.at("set").get<float>();
    } else {
      data[at] *= change.at("multiply").get<float>();
    }
  }
}

at::ScalarType parse_dtype(const std::string& name) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  throw std::runtime_error("golden dtype " + name);
}

std::string replace_prefix(const std::string& name,
                           const std::vector<std::pair<std::string, std::string>>& prefixes) {
  for (const auto& [from, to] : prefixes) {
    if (name.rfind(from, 0) == 0) return to + name.substr(from.size());
  }
  throw std::runtime_error("no layout has " + name);
}

std::string renamed(const std::string& name, Layout layout) {
  switch (layout) {
    case Layout::kA:
      return name;
    case Layout::kB:
      return replace_prefix(name, {{"language_model.model.", "model.language_model."},
                                   {"language_model.lm_head.", "lm_head."},
                                   {kTower, "model.vision_tower."},
                                   {"multi_modal_projector.", "model.multi_modal_projector."}});
    case Layout::kC:
      return replace_prefix(name, {{kTower, "vision_tower."}, {"", ""}});
    default:
      return replace_prefix(name, {{"language_model.model.", "model."},
                                   {"language_model.lm_head.", "lm_head."},
                                   {kTower, "model.vision_tower.vision_tower.vision_model."},
                                   {"multi_modal_projector.linear_1.", "model.mm_projector.0."},
                                   {"multi_modal_projector.linear_2.", "model.mm_projector.2."}});
  }
}

const char* safetensors_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return "F32";
    case at::kHalf:
      return "F16";
    case at::kBFloat16:
      return "BF16";
    case at::kLong:
      return "I64";
    default:
      throw std::runtime_error("write_safetensors: dtype");
  }
}

void copy_tokenizer(const std::filesystem::path& dir, const json& files) {
  for (const auto& file : files) {
    const std::filesystem::path from = golden_folder() / file.get<std::string>();
    std::filesystem::copy_file(from, dir / from.filename(),
                               std::filesystem::copy_options::overwrite_existing);
  }
}

/// Embedding and head of an original checkpoint have no rows behind the vocabulary.
Tensors cut_rows(Tensors tensors, std::int64_t rows) {
  for (auto& [name, tensor] : tensors) {
    const bool vocabulary = name == "language_model.model.embed_tokens.weight" ||
                            name == "language_model.lm_head.weight";
    if (vocabulary) tensor = tensor.slice(0, 0, rows).contiguous();
  }
  return tensors;
}

void write_original(const std::filesystem::path& dir, const json& golden, bool inside, int shards) {
  const json& original = golden.at("original");
  Tensors model, tower;
  for (auto& [name, tensor] :
       cut_rows(golden_weights(golden), original.at("rows").get<std::int64_t>())) {
    const bool is_tower = name.rfind(kTower, 0) == 0;
    if (is_tower && !inside) {
      tower.emplace(name.substr(std::string("vision_tower.").size()), tensor);
    } else {
      model.emplace(name, tensor);
    }
  }
  write_weights(dir, rename(model, Layout::kOriginal), shards);
  write_bytes(dir / "config.json", original.at("config").dump(2));
  write_bytes(dir / "generation_config.json", original.at("generation_config").dump(2));
  copy_tokenizer(dir, original.at("tokenizer_files"));
  const std::filesystem::path folder =
      dir / original.at("config").at("mm_vision_tower").get<std::string>();
  write_bytes(folder / "config.json", original.at("vision_config").dump(2));
  write_bytes(folder / "preprocessor_config.json", golden.at("preprocessor_config").dump(2));
  if (!inside) write_weights(folder, tower);
}

const json& case_of(const json& manifest, const std::string& name) {
  for (const json& golden : manifest.at("cases")) {
    if (golden.at("name") == name) return golden;
  }
  throw std::runtime_error("no golden case " + name);
}

}  // namespace

std::filesystem::path golden_folder() {
  return std::filesystem::path(LIBVAR_SOURCE_DIR) / "tests" / "golden";
}

const json& golden_manifest() {
  static const json manifest = json::parse(read_bytes(golden_folder() / "manifest.json"));
  return manifest;
}

const json& golden_case(const std::string& name) {
  return case_of(golden_manifest(), name);
}

std::vector<std::string> golden_case_names() {
  std::vector<std::string> names;
  for (const json& golden : golden_manifest().at("cases"))
    names.push_back(golden.at("name").get<std::string>());
  return names;
}

Tensors golden_weights(const json& golden) {
  Tensors out;
  for (const json& tensor : golden.at("tensors")) {
    const auto name = tensor.at("name").get<std::string>();
    const std::uint64_t seed = fnv1a64(golden.at("seed_name").get<std::string>() + "/" + name);
    const auto scale = tensor.at("scale").get<float>(), offset = tensor.at("offset").get<float>();
    const at::Tensor values = at::empty(tensor.at("shape").get<std::vector<std::int64_t>>(),
                                        at::TensorOptions(at::kFloat));
    float* data = values.mutable_data_ptr<float>();
    for (std::int64_t i = 0; i < values.numel(); ++i) {
      data[i] = value_at(seed, static_cast<std::uint64_t>(i), scale, offset);
    }
    for (const json& change : golden.at("overrides")) {
      if (change.at("tensor") == name) apply_override(data, values.numel(), change);
    }
    out.emplace(name, values.to(parse_dtype(golden.at("dtype").get<std::string>())));
  }
  return out;
}

Tensors rename(const Tensors& tensors, Layout layout) {
  Tensors out;
  for (const auto& [name, tensor] : tensors) out.emplace(renamed(name, layout), tensor);
  return out;
}

void write_safetensors(const std::filesystem::path& path, const Tensors& tensors) {
  json header = {{"__metadata__", {{"format", "pt"}}}};
  std::size_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t begin = end;
    end += tensor.nbytes();
    header[name] = {{"dtype", safetensors_dtype(tensor.scalar_type())},
                    {"shape", tensor.sizes().vec()},
                    {"data_offsets", {begin, end}}};
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  std::string bytes;
  for (int i = 0; i < 8; ++i) bytes += static_cast<char>(std::uint64_t{text.size()} >> (8 * i));
  bytes += text;
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor rows = tensor.contiguous();
    bytes.append(static_cast<const char*>(rows.const_data_ptr()), rows.nbytes());
  }
  write_bytes(path, bytes);
}

void write_weights(const std::filesystem::path& dir, const Tensors& tensors, int shards) {
  if (shards == 1) {
    write_safetensors(dir / "model.safetensors", tensors);
    return;
  }
  std::vector<Tensors> parts(static_cast<std::size_t>(shards));
  std::size_t i = 0;
  for (const auto& [name, tensor] : tensors)
    parts[i++ * parts.size() / tensors.size()].emplace(name, tensor);
  json index = {{"metadata", {{"total_size", 0}}}, {"weight_map", json::object()}};
  for (std::size_t part = 0; part < parts.size(); ++part) {
    char file[64];
    std::snprintf(file, sizeof(file), "model-%05zu-of-%05zu.safetensors", part + 1, parts.size());
    write_safetensors(dir / file, parts[part]);
    for (const auto& [name, tensor] : parts[part]) index["weight_map"][name] = file;
  }
  write_bytes(dir / "model.safetensors.index.json", index.dump(2));
}

void write_golden_checkpoint(const std::filesystem::path& dir, const json& golden, Layout layout,
                             int shards) {
  std::filesystem::create_directories(dir);
  if (layout == Layout::kOriginal || layout == Layout::kOriginalInside) {
    write_original(dir, golden, layout == Layout::kOriginalInside, shards);
    return;
  }
  write_weights(dir, rename(golden_weights(golden), layout), shards);
  write_bytes(dir / "config.json", golden.at("config").dump(2));
  write_bytes(dir / "generation_config.json", golden.at("generation_config").dump(2));
  write_bytes(dir / "preprocessor_config.json", golden.at("preprocessor_config").dump(2));
  copy_tokenizer(dir, golden.at("tokenizer_files"));
}

const json& families_manifest() {
  static const json manifest =
      json::parse(read_bytes(golden_folder() / "families" / "manifest.json"));
  return manifest;
}

const json& family_case(const std::string& name) {
  return case_of(families_manifest(), name);
}

FamilyCheckpoint::FamilyCheckpoint(const json& golden)
    : tensors(golden_weights(golden)),
      files(golden.at("files").get<std::map<std::string, json>>()) {
  const std::filesystem::path folder = golden.value("copies_to", "");
  for (const json& file : golden.at("copies")) {
    const std::filesystem::path from = golden_folder() / file.get<std::string>();
    copies.emplace((folder / from.filename()).string(), from);
  }
}

void FamilyCheckpoint::write(const std::filesystem::path& dir) const {
  std::map<std::string, Tensors> folders;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t slash = name.find('/');
    const bool inside = slash != std::string::npos;
    folders[inside ? name.substr(0, slash) : "."].emplace(inside ? name.substr(slash + 1) : name,
                                                          tensor);
  }
  for (const auto& [name, part] : folders) write_weights(dir / name, part, /*shards=*/2);
  for (const auto& [name, content] : files) write_bytes(dir / name, content.dump(2));
  for (const auto& [name, from] : copies) {
    std::filesystem::create_directories((dir / name).parent_path());
    std::filesystem::copy_file(from, dir / name);
  }
}

std::filesystem::path golden_archive(const std::string& name, bool original) {
  static const TemporaryFolder folder;
  const std::filesystem::path path = folder / (name + (original ? "-original.pt" : ".pt"));
  if (std::filesystem::exists(path)) return path;
  const TemporaryFolder checkpoint;
  const json& golden = golden_case(name);
  write_golden_checkpoint(checkpoint.path(), golden, original ? Layout::kOriginal : Layout::kA);
  ConvertOptions options;
  options.sink_dims = golden.at("sink_dims").get<std::vector<std::int64_t>>();
  convert_checkpoint(checkpoint.path(), path, options);
  return path;
}

}  // namespace libvar::testing
