#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace libvar::testing {

/// Tensors by name.
using Tensors = std::map<std::string, at::Tensor>;

/// tests/golden/manifest.json.
const nlohmann::json& golden_manifest();

/// tests/golden/.
std::filesystem::path golden_folder();

/// The manifest's entry of a case ("mha", "gqa", ...).
const nlohmann::json& golden_case(const std::string& name);

std::vector<std::string> golden_case_names();

/// The weights of a case under layout A names, rounded to its dtype: made from the counter that
/// tests/golden/README.md defines.
Tensors golden_weights(const nlohmann::json& golden);

/// How a checkpoint spells and places its tensors (models.md: A as published, B of
/// transformers 4.52 in memory, C written by transformers 5, the original LLaVA with its tower in a
/// folder beside it, and with the tower inside).
enum class Layout { kA, kB, kC, kOriginal, kOriginalInside };

/// Writes a complete checkpoint folder of a case; `shards` > 1 also writes an index.
/// @param layout  kOriginal and kOriginalInside: only for cases that have "original" in the
/// manifest
void write_golden_checkpoint(const std::filesystem::path& dir, const nlohmann::json& golden,
                             Layout layout = Layout::kA, int shards = 1);

/// The archive of a case, converted once per process from its layout (A, or original where
/// `original` says so); removed when the process ends.
std::filesystem::path golden_archive(const std::string& name, bool original = false);

/// tests/golden/families/manifest.json.
const nlohmann::json& families_manifest();

/// Its entry of a case ("qwen_flat", "internvl_small", "vila15_llama2", ...).
const nlohmann::json& family_case(const std::string& name);

/// The checkpoint of a family's case in its published form; tests change a part and write it.
struct FamilyCheckpoint {
  Tensors tensors;                                      ///< "llm/model.norm.weight" lies in llm/
  std::map<std::string, nlohmann::json> files;          ///< by name in the checkpoint
  std::map<std::string, std::filesystem::path> copies;  ///< tokenizer files, likewise

  explicit FamilyCheckpoint(const nlohmann::json& golden);
  /// Each folder's tensors are two shards with an index.
  void write(const std::filesystem::path& dir) const;
};

/// Writes one safetensors file.
void write_safetensors(const std::filesystem::path& path, const Tensors& tensors);

/// The tensors as one file, or as `shards` files with an index.
void write_weights(const std::filesystem::path& dir, const Tensors& tensors, int shards = 1);

/// Layout A names in another layout.
Tensors rename(const Tensors& tensors, Layout layout);

}  // namespace libvar::testing
