#pragma once

#include <CLI/App.hpp>
#include <CLI/Option.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "libvar/model.h"
#include "libvar/request.h"
#include "libvar/session.h"
#include "libvar/var_params.h"

namespace var_command {

/// --device, --dtype, --weights, --threads and --log-level, which every subcommand has.
struct CommonFlags {
  std::string device = "auto", dtype = "auto", weights = "map", log_level = "warning";
  int threads = 0;

  /// @param dtype_help  what --dtype means here
  void add(CLI::App& command, const std::string& dtype_help);
  /// Sets the number of threads of this process, and says it at level info.
  void apply() const;
  void warn(const std::string& text) const;  ///< "var: ..." on stderr from level warning on
  void log(const std::string& text) const;   ///< from level info on
};

/// Loads the model with a bar; Ctrl-C ends it.
std::shared_ptr<const libvar::Model> load_model(const std::string& path, const CommonFlags& flags);

/// --no-var, --preset and the settings that override it.
struct VarFlags {
  bool no_var = false;
  std::optional<std::string> preset;
  std::optional<float> tau, rho, p, min_visual_mass;
  std::optional<std::int64_t> first_layer;

  void add(CLI::App& command);
  /// @throws libvar::ConfigError  a value is out of range
  void check() const;
  /// The model's defaults or the preset, with what the flags say; without VAR where the model has
  /// no sink dimensions.
  libvar::VarParams params(const libvar::Model& model) const;

 private:
  void override_values(libvar::VarParams& params) const;
};

/// How tokens are chosen, and with which memory.
struct GenerationFlags {
  libvar::GenerationParams params;
  std::optional<double> temperature, top_p;
  std::optional<std::int64_t> top_k;
  bool no_graph = false;
  std::uint64_t memory_bytes = 0;

  void add(CLI::App& command);
  /// Samples where --temperature, --top-p or --top-k says so.
  libvar::GenerationParams generation() const;
  libvar::SessionOptions session() const;
};

/// What else a question is asked with.
struct PromptFlags {
  std::vector<std::string> images;
  std::optional<std::string> system;
  std::string prompt_style = "auto", image_mode = "auto", resize_order = "pillow12";
  std::optional<std::int64_t> max_tiles, min_pixels, max_pixels;
  bool no_exif_rotation = false;

  void add(CLI::App& command);
  /// @throws libvar::InputError  an image file isn't there: said before the model is loaded
  void check() const;
  void fill(libvar::Request& request) const;  ///< all but the images
};

/// @throws libvar::InputError  no such file
void check_image_file(const std::string& path);

}  // namespace var_command
