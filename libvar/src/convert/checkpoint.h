#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "convert/safetensors.h"
#include "families/family.h"

namespace libvar {

/// A Hugging Face checkpoint folder: its small files as published, its tensors under their
/// published names.
struct Checkpoint {
  CheckpointFiles files;
  std::map<std::string, CheckpointTensor> tensors;
  const Family* family = nullptr;
};

/// @throws ArchiveError  no folder, no config.json, another family, no safetensors
Checkpoint open_checkpoint(const std::filesystem::path& dir);

/// Adds the vision tower from a folder of its own where the checkpoint has none (the original LLaVA
/// layout).
/// @throws ArchiveError  it is nowhere; says where to put it
void add_vision_folder(const std::filesystem::path& dir, Checkpoint& checkpoint);

/// A whole file.
/// @throws ArchiveError
std::string read_text_file(const std::filesystem::path& path);

}  // namespace libvar
