#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "archive/archive.h"
#include "decoder/decoder.h"
#include "families/family.h"
#include "text/tokenizer.h"
#include "vision/encoder.h"
#include "weights.h"

namespace libvar {

/// First layer that may be changed where an archive says nothing: massive activations do not exist
/// earlier.
inline constexpr std::int64_t kDefaultFirstLayer = 2;

/// The parts of a model in memory. Immutable once it is made.
class LoadedModel {
 public:
  /// @param tensors  tensors by canonical name; those used in place are shared
  LoadedModel(ModelConfig model_config, ArchiveManifest archive_manifest,
              std::unique_ptr<Tokenizer> model_tokenizer, const TensorMap& tensors,
              const ComputeTarget& compute_target, WeightReader::Hooks hooks);

  /// The same weights, shared, with other sink dimensions.
  LoadedModel(const LoadedModel& other, SinkDimensions sink_dimensions);

  /// Image features as the decoder's embeddings, [visual tokens, D] for each image.
  /// @param tiles_at_once  see VisionEncoder::encode
  std::vector<at::Tensor> encode_images(const std::vector<ProcessedImage>& images,
                                        std::int64_t tiles_at_once = 0) const {
    return vision_->encode(images, tiles_at_once);
  }

  VisualSize visual_size(const ProcessedImage& image) const { return vision_->visual_size(image); }

  bool is_stop_token(std::int64_t token) const;

  /// The id that stands for a visual token in Sequence::ids.
  std::int64_t image_token() const;

  /// Defaults of the paper, of the archive, and what this model can't do: without sink dimensions
  /// VAR is off.
  VarParams var_defaults() const;

  const ModelConfig config;
  const ArchiveManifest manifest;
  const std::shared_ptr<const Tokenizer> tokenizer;
  const ComputeTarget target;
  const Decoder decoder;
  double load_ms = 0;

 private:
  LoadedModel(ModelConfig model_config, ArchiveManifest archive_manifest,
              std::unique_ptr<Tokenizer> model_tokenizer, const WeightReader& weights);

  std::shared_ptr<const VisionEncoder> vision_;
};

}  // namespace libvar
