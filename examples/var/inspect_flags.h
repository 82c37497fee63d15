#pragma once

#include <CLI/App.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <opencv2/core.hpp>
#include <optional>
#include <string>
#include <vector>

#include "flags.h"
#include "libvar/inspection.h"

namespace var_command {

/// What the commands that look into one question share.
struct InspectFlags {
  CommonFlags common;
  PromptFlags prompt;
  VarFlags var;
  std::string model, question;
  std::optional<std::string> layers, out;
  std::int64_t max_new_tokens = 16;
  bool json = false;

  void add(CLI::App& command);
  /// Loads the model, which must have sink dimensions; makes the folder of --out.
  std::shared_ptr<const libvar::Model> open() const;
  libvar::Request request(const libvar::Model& model) const;
  /// [first, last] of --layers; else those that the authors looked at, 10 to 12 of 32, in
  /// proportion.
  /// @throws libvar::ConfigError  as parse_layers
  std::pair<std::int64_t, std::int64_t> layer_range(std::int64_t num_layers) const;
  /// @param keeps_heads  keep the heads of `layers` one by one
  libvar::Inspection inspect(const std::shared_ptr<const libvar::Model>& model,
                             const std::pair<std::int64_t, std::int64_t>& layers,
                             bool keeps_heads) const;
  /// One of --image, as the model sees it.
  cv::Mat picture(std::size_t index) const;
  std::filesystem::path out_file(const std::string& name) const;
};

/// [first, last] of --layers.
/// @throws libvar::ConfigError  not A or A-B with A <= B, both layers of the model
std::pair<std::int64_t, std::int64_t> parse_layers(const std::string& layers,
                                                   std::int64_t num_layers);

/// How the attention of some rows is shared out, mean over rows and heads.
struct AttentionShares {
  double sinks = 0, others = 0, text = 0;  ///< visual sinks, other visual tokens, text
};

/// @param attention  Inspection::attention or ::redistributed
AttentionShares attention_shares(const libvar::Inspection& found, const at::Tensor& attention,
                                 std::int64_t layer);

/// Positions of the visual sinks of a layer.
std::vector<std::int64_t> visual_sinks(const libvar::Inspection& found, std::int64_t layer,
                                       float tau);

/// Mean over the rows that have a number. [..., R] -> [...]
at::Tensor mean_of_numbers(const at::Tensor& values);

/// Writes a CSV file; every row has as many cells as the header.
void write_csv(const std::filesystem::path& path, const std::vector<std::string>& header,
               const std::vector<std::vector<std::string>>& rows);

}  // namespace var_command
