#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "decoder/config.h"
#include "families/sink_dimensions.h"
#include "image/config.h"
#include "text/prompt.h"
#include "vision/config.h"

namespace libvar {

/// Files of a checkpoint by name ("config.json"), as published.
using CheckpointFiles = std::map<std::string, std::string>;

/// Name of the config.json of a vision tower that lies in a folder of its own.
inline constexpr const char* kVisionConfigFile = "vision_tower/config.json";

/// A tensor that a model of this configuration must have, under its canonical name (layout A).
struct TensorSpec {
  std::string name;
  std::vector<std::int64_t> shape;
  bool is_quantizable = false;  ///< the weight of a linear map in a layer of the decoder
};

/// What becomes of a tensor of a checkpoint.
struct CanonicalTensor {
  std::string name;  ///< layout A
  /// The part of the published tensor, by views and copies alone; null: all of it.
  std::function<at::Tensor(const at::Tensor&)> part = {};
  std::int64_t rows = 0;  ///< where there is a part: rows of the published tensor
};

/// A folder of a checkpoint that holds a part of the model.
struct CheckpointPart {
  std::string folder;
  std::string tensor_prefix;     ///< put before the names of its tensors
  bool holds_tokenizer = false;  ///< its tokenizer files are the model's
};

/// Everything about a model but its weights, tokenizer and sink dimensions.
struct ModelConfig {
  std::string family;
  DecoderConfig decoder;
  VisionConfig vision;
  ImageProcessorConfig image;
  PromptStyle prompt_style = PromptStyle::kLlavaHf;
  std::optional<std::int64_t> image_token_id;  ///< none: the vocabulary has no image token
  std::string image_token = "<image>";         ///< how a tokenizer that has it spells it
  std::vector<std::int64_t> stop_tokens;
  std::int64_t visual_tokens = 0;  ///< per image or tile; 0: the picture's size decides
  std::string
      checkpoint_dtype;  ///< "float32", "bfloat16", "float16", or "" where the files don't say
  /// What stands before "model.layers.0..." and "lm_head.weight" in canonical names.
  std::string decoder_scope = "language_model.";
};

/// What differs between model families: reading the configuration, names and shapes of tensors.
/// One file each; find_family chooses.
class Family {
 public:
  virtual ~Family() = default;
  virtual std::string name() const = 0;
  /// True where config.json is of this family.
  virtual bool recognises(const nlohmann::json& config) const = 0;
  /// @throws ArchiveError  a key is missing, of the wrong type, or asks for what is not supported
  virtual ModelConfig read_config(const CheckpointFiles& files) const = 0;
  /// Canonical (layout A) name of a tensor found in a checkpoint; nullopt: known and not needed
  /// (buffers).
  virtual std::optional<std::string> canonical_name(const std::string& name) const = 0;
  /// The same for families that publish several canonical tensors as one; empty: not needed.
  virtual std::vector<CanonicalTensor> canonical_tensors(const std::string& name,
                                                         const ModelConfig& config) const;

  /// How the checkpoint spells the canonical tensor, or the one that holds it, with the prefix of
  /// its folder: to tell what is missing.
  virtual std::string published_name(const std::string& canonical, const CheckpointFiles&) const {
    return canonical;
  }

  /// The folders in which the model lies; empty: it lies beside config.json. The configurations of
  /// a folder get its name and a slash before their own.
  virtual std::vector<CheckpointPart> parts(const CheckpointFiles&) const { return {}; }

  /// Folders that hold the vision tower where the checkpoint itself does not, most likely first:
  /// absolute, or beside config.json. Its tensors get "vision_tower." before their names, its
  /// config.json becomes the file kVisionConfigFile.
  virtual std::vector<std::string> vision_folders(const CheckpointFiles& files) const = 0;
  /// The tensors that must be there, and no others matter.
  virtual std::vector<TensorSpec> expected_tensors(const ModelConfig& config) const = 0;
};

/// @throws ArchiveError  no family recognises config.json; names its model_type
const Family& find_family(const CheckpointFiles& files);

}  // namespace libvar
