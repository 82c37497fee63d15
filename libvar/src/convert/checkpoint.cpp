#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>

#include "convert/checkpoint.h"
#include "convert/safetensors.h"
#include "families/json_fields.h"
#include "libvar/error.h"

namespace libvar {
namespace {

constexpr const char* kIndex = "model.safetensors.index.json";
constexpr const char* kSingle = "model.safetensors";

std::map<std::string, CheckpointTensor> open_single(const std::filesystem::path& path) {
  const auto file = std::make_shared<const SafetensorsFile>(SafetensorsFile::open(path));
  std::map<std::string, CheckpointTensor> out;
  for (const auto& [name, entry] : file->entries()) out.emplace(name, CheckpointTensor{file, name});
  return out;
}

std::map<std::string, CheckpointTensor> open_sharded(const std::filesystem::path& dir) {
  const std::string where = (dir / kIndex).string();
  const nlohmann::json index = JsonFields::parse(read_text_file(dir / kIndex), where);
  JsonFields(index, where).object("weight_map");
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> shards;
  std::map<std::string, CheckpointTensor> out;
  for (const auto& [name, shard] : index.at("weight_map").items()) {
    if (!shard.is_string())
      throw ArchiveError(where + ": weight_map: " + name + ": expected the name of a file");
    const std::string file_name = shard.get<std::string>();
    // A shard lies beside its index; nothing else is opened because an index says so.
    if (std::filesystem::path(file_name).filename() != file_name || file_name == "..") {
      throw ArchiveError(where + ": weight_map: " + name +
                         ": expected a file beside the index, found " + file_name);
    }
    auto& file = shards[file_name];
    if (file == nullptr) {
      if (!std::filesystem::exists(dir / file_name)) {
        throw ArchiveError((dir / file_name).string() +
                           ": this shard of the checkpoint is missing");
      }
      file = std::make_shared<const SafetensorsFile>(SafetensorsFile::open(dir / file_name));
    }
    if (file->entries().count(name) == 0) {
      throw ArchiveError(file->path().string() + ": tensor " + name + " is missing, " + kIndex +
                         " says it is there");
    }
    out.emplace(name, CheckpointTensor{file, name});
  }
  return out;
}

constexpr std::array<const char*, 4> kConfigurations{
    "config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"};
constexpr std::array<const char*, 7> kTokenizerFiles{"tokenizer.model",
                                                     "tokenizer.json",
                                                     "tokenizer_config.json",
                                                     "special_tokens_map.json",
                                                     "added_tokens.json",
                                                     "vocab.json",
                                                     "merges.txt"};

/// Those of the files that are there, with `prefix` before their names.
template <std::size_t count>
void read_files(const std::filesystem::path& dir, const std::string& prefix,
                const std::array<const char*, count>& names, CheckpointFiles& files) {
  std::error_code ignored;
  for (const char* name : names) {
    if (std::filesystem::exists(dir / name, ignored))
      files.emplace(prefix + name, read_text_file(dir / name));
  }
}

[[noreturn]] void fail_without_safetensors(const std::filesystem::path& dir) {
  std::string pickle;
  for (const auto& entry : std::filesystem::directory_iterator(dir)) {
    const std::string extension = entry.path().extension().string();
    if (extension == ".bin" || extension == ".pth" || extension == ".pt") {
      const std::string name = entry.path().filename().string();
      if (pickle.empty() || name < pickle) pickle = name;
    }
  }
  if (pickle.empty()) {
    throw ArchiveError(dir.string() + ": holds no weights: expected " + kSingle + ", or " + kIndex +
                       " with its shards; found neither");
  }
  throw ArchiveError(
      dir.string() + ": holds pickled weights only (" + pickle +
      "), which can run code; load it with its transformers class, call save_pretrained(FOLDER, "
      "safe_serialization=True) and convert FOLDER, or write its tensors with "
      "safetensors.torch.save_file");
}

}  // namespace

std::map<std::string, CheckpointTensor> open_checkpoint_tensors(const std::filesystem::path& dir) {
  std::error_code ignored;
  if (std::filesystem::exists(dir / kIndex, ignored)) return open_sharded(dir);
  if (std::filesystem::exists(dir / kSingle, ignored)) return open_single(dir / kSingle);
  fail_without_safetensors(dir);
}

std::string read_text_file(const std::filesystem::path& path) {
  return std::string(MappedFile::open(path)->bytes());
}

Checkpoint open_checkpoint(const std::filesystem::path& dir) {
  std::error_code ignored;
  if (!std::filesystem::exists(dir, ignored))
    throw ArchiveError(dir.string() + ": there is no such folder");
  if (!std::filesystem::is_directory(dir, ignored)) {
    throw ArchiveError(dir.string() +
                       ": expected the folder of a Hugging Face checkpoint, found a file");
  }
  Checkpoint out;
  read_files(dir, "", kConfigurations, out.files);
  read_files(dir, "", kTokenizerFiles, out.files);
  if (out.files.count("config.json") == 0)
    throw ArchiveError(dir.string() + ": config.json is missing");
  try {
    out.family = &find_family(out.files);
  } catch (const ArchiveError& error) {
    throw ArchiveError(dir.string() + ": " + error.what());
  }
  const std::vector<CheckpointPart> parts = out.family->parts(out.files);
  for (const CheckpointPart& part : parts) {
    const std::filesystem::path folder = dir / part.folder;
    if (!std::filesystem::is_directory(folder, ignored))
      throw ArchiveError(folder.string() + ": this folder of the checkpoint is missing");
    read_files(folder, part.folder + "/", kConfigurations, out.files);
    if (part.holds_tokenizer) read_files(folder, "", kTokenizerFiles, out.files);
    for (auto& [name, tensor] : open_checkpoint_tensors(folder))
      out.tensors.emplace(part.tensor_prefix + name, std::move(tensor));
  }
  if (!parts.empty()) return out;
  out.tensors = open_checkpoint_tensors(dir);
  return out;
}

void add_vision_folder(const std::filesystem::path& dir, Checkpoint& checkpoint) {
  const auto is_tower = [&](const auto& item) {
    const auto name = checkpoint.family->canonical_name(item.first);
    return name && name->rfind("vision_tower.", 0) == 0;
  };
  const std::vector<std::string> folders = checkpoint.family->vision_folders(checkpoint.files);
  std::error_code ignored;
  const auto is_folder = [&](const std::string& name) {
    return std::filesystem::is_directory(dir / name, ignored);
  };
  const auto folder = std::find_if(folders.begin(), folders.end(), is_folder);
  const bool inside = std::any_of(checkpoint.tensors.begin(), checkpoint.tensors.end(), is_tower);
  if (folder == folders.end()) {
    if (inside || folders.empty()) return;
    throw ArchiveError(
        dir.string() +
        ": holds no vision tower; put the folder of the CLIP model that config.json names (" +
        folders.back() + ") into it as vision_tower/");
  }
  const std::filesystem::path tower = dir / *folder;
  if (std::filesystem::exists(tower / "config.json", ignored)) {
    checkpoint.files.emplace(kVisionConfigFile, read_text_file(tower / "config.json"));
  }
  if (std::filesystem::exists(tower / "preprocessor_config.json", ignored)) {
    checkpoint.files.emplace("preprocessor_config.json",
                             read_text_file(tower / "preprocessor_config.json"));
  }
  if (inside) return;  // a fine-tuned tower goes before the published one
  for (auto& [name, tensor] : open_checkpoint_tensors(tower)) {
    const bool alone = name.rfind("vision_model.", 0) == 0 || name.rfind("embeddings.", 0) == 0 ||
                       name.rfind("encoder.", 0) == 0 || name.rfind("pre_layrnorm.", 0) == 0 ||
                       name.rfind("post_layernorm.", 0) == 0;
    if (alone) checkpoint.tensors.emplace("vision_tower." + name, std::move(tensor));
  }
}

}  // namespace libvar
