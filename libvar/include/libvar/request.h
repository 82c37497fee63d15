#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "libvar/var_params.h"

namespace libvar {

/// 8-bit RGB picture in memory, row by row, three bytes a pixel.
struct RgbImage {
  std::int64_t width = 0;
  std::int64_t height = 0;
  std::vector<std::uint8_t> pixels = {};  ///< height * width * 3
};

/// A file (PNG, JPEG, WebP, BMP) or pixels.
using ImageSource = std::variant<std::filesystem::path, RgbImage>;

/// How tokens are chosen. The defaults are greedy.
struct GenerationParams {
  std::int64_t max_new_tokens = 128;  ///< >= 1
  double temperature = 0.0;           ///< 0: greedy, the lowest id of equal logits
  std::int64_t top_k = 0;             ///< 0: all tokens
  double top_p = 1.0;                 ///< in (0, 1]
  std::uint64_t seed =
      0;  ///< the same seed gives the same draw on every device, given the same logits
};

/// One question about zero or more images.
struct Request {
  std::vector<ImageSource> images = {};
  std::string question =
      {};  ///< may hold <image> once for each image; else they stand before the text
  std::optional<std::string> raw_prompt =
      {};  ///< replaces question, system and prompt_style; <image> marks the places
  std::optional<std::string> system = {};  ///< replaces the prompt style's own system text
  std::string prompt_style = "auto";       ///< auto (the checkpoint's) or one of prompt_styles()
  std::string image_mode = "auto";  ///< auto (the checkpoint's); crop, pad where a model crops
  /// Most tiles of a picture where a model cuts it into tiles; none: the checkpoint's.
  std::optional<std::int64_t> max_tiles = {};
  /// Least and most pixels of a picture where a model takes any size; none: the checkpoint's.
  std::optional<std::int64_t> min_pixels = {}, max_pixels = {};
  /// Whose order the two passes of a resize have: pillow12 (of every Pillow before 13.0: horizontal
  /// first) or pillow13 (of Pillow 13.0, which goes by the sizes).
  std::string resize_order = "pillow12";
  bool exif_rotation = true;  ///< turn the picture as its EXIF orientation says
  /// The paper's values unless set; Model::var_defaults() gives those stored with the model, with
  /// `enabled` false where no sink dimensions are known (enabled is a ConfigError there).
  VarParams var = {};
  GenerationParams generation = {};
  bool return_logits = false;  ///< fill Answer::logits
};

/// Names for Request::prompt_style, "auto" left out.
std::vector<std::string> prompt_styles();

/// Why an answer ended.
enum class FinishReason {
  kStop,       ///< a stop token was chosen
  kLength,     ///< max_new_tokens were generated
  kCancelled,  ///< the callback returned false
};

/// "stop", "length" or "cancelled".
std::string_view to_string(FinishReason reason);

/// What VAR did in one answer, per decoder layer.
struct VarStatistics {
  VarParams params;  ///< as used, first_layer filled in
  std::vector<std::vector<std::int64_t>>
      visual_sinks;  ///< key positions of the visual sinks, ascending
  std::vector<std::int64_t>
      selected_rows;  ///< (head, row) pairs changed, prompt and generation together
  std::vector<std::int64_t>
      eligible_rows;  ///< (head, row) pairs of text rows that see a visual sink
};

/// What an answer took.
struct Timing {
  double load_ms = 0;  ///< the model's load
  double vision_ms = 0;
  double prefill_ms = 0;
  double decode_ms = 0;
  std::int64_t decode_tokens = 0;  ///< tokens computed by decode steps
  double tokens_per_second = 0;    ///< decode_tokens / decode_ms
  std::int64_t peak_memory_bytes =
      0;  ///< resident memory of the process, or allocated device memory
};

/// The answer to one request, and how it came about.
struct Answer {
  std::string text;
  std::vector<std::int64_t> tokens;  ///< generated ids, the stop token excluded
  std::vector<std::int64_t>
      prompt_tokens;  ///< as fed to the decoder; one image token id (-200 if none) per visual token
  std::vector<std::pair<std::int64_t, std::int64_t>>
      visual_spans;  ///< [begin, end) positions of each image
  FinishReason finish_reason = FinishReason::kStop;
  VarStatistics var;
  Timing timing;
  at::Tensor logits;  ///< [chosen tokens, vocabulary] float32 on the CPU, the stop token's row
                      ///< included; or undefined
};

/// Gets each piece of the answer's text, whole UTF-8 characters; returning false ends the
/// generation.
using TextCallback = std::function<bool(std::string_view piece)>;

/// Gets the bytes done and in all.
using ProgressCallback = std::function<void(std::int64_t done, std::int64_t total)>;

}  // namespace libvar
