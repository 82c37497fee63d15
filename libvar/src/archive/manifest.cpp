#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "archive/archive.h"
#include "families/json_fields.h"
#include "families/sink_dimensions.h"
#include "libvar/error.h"

namespace libvar {
namespace {

/// The number whose shortest decimal text is that of the float: 0.8, not 0.800000011920929.
double shortest(float value) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  double out = value;
  std::from_chars(text, end, out);
  return out;
}

nlohmann::ordered_json sinks_json(const SinkDimensions& sinks) {
  return {{"dims", sinks.dims}, {"source", sinks.source}};
}

}  // namespace

std::string to_json_text(const ArchiveManifest& manifest) {
  const VarParams& var = manifest.var_defaults;
  nlohmann::ordered_json out;
  out["format_version"] = manifest.format_version;
  out["family"] = manifest.family;
  out["dtype"] = manifest.dtype;
  if (!manifest.quantization.empty()) out["quantization"] = manifest.quantization;
  out["sink_dimensions"] = sinks_json(manifest.sink_dimensions);
  auto& defaults = out["var_defaults"];
  defaults["tau"] = shortest(var.tau);
  defaults["rho"] = shortest(var.rho);
  defaults["p"] = shortest(var.p);
  defaults["min_visual_mass"] = shortest(var.min_visual_mass);
  defaults["first_layer"] = nullptr;
  if (var.first_layer) defaults["first_layer"] = *var.first_layer;
  return out.dump(2) + "\n";
}

std::string replace_sink_dimensions(const std::string& text, const SinkDimensions& sinks) {
  auto json = nlohmann::ordered_json::parse(text);
  json["sink_dimensions"] = sinks_json(sinks);
  return json.dump(2) + "\n";
}

ArchiveManifest parse_manifest(const std::string& text, const std::filesystem::path& archive) {
  const std::string where = archive.string() + ": libvar.json";
  const nlohmann::json json = JsonFields::parse(text, where);
  const JsonFields fields(json, where);
  ArchiveManifest out;
  out.format_version = fields.integer("format_version");
  if (out.format_version != kArchiveFormatVersion) {
    throw ArchiveError(archive.string() + ": is an archive of format version " +
                       std::to_string(out.format_version) + ", this library reads version " +
                       std::to_string(kArchiveFormatVersion) +
                       ": convert the checkpoint again with its own `var convert`");
  }
  out.family = fields.text("family");
  out.dtype = fields.text("dtype");
  if (out.dtype != "float32" && out.dtype != "bfloat16" && out.dtype != "float16") {
    fields.fail("dtype", "float32, bfloat16 or float16");
  }
  if (fields.has("quantization")) {
    out.quantization = fields.text("quantization");
    if (out.quantization != "int8") fields.fail("quantization", "int8");
  }
  const JsonFields sinks = fields.object("sink_dimensions");
  out.sink_dimensions.dims = sinks.integers("dims", 0, kMaxJsonInteger);
  if (out.sink_dimensions.dims.size() > kMaxSinkDims) sinks.fail("dims", "at most 8 dimensions");
  out.sink_dimensions.source = sinks.text("source");
  const JsonFields var = fields.object("var_defaults");
  out.var_defaults.tau = static_cast<float>(var.number("tau"));
  out.var_defaults.rho = static_cast<float>(var.number("rho"));
  out.var_defaults.p = static_cast<float>(var.number("p"));
  out.var_defaults.min_visual_mass = static_cast<float>(var.number("min_visual_mass"));
  if (var.has("first_layer")) out.var_defaults.first_layer = var.integer("first_layer");
  try {
    out.var_defaults.validate();
  } catch (const ConfigError& error) {
    throw ArchiveError(where + ": var_defaults: " + error.what());
  }
  return out;
}

}  // namespace libvar
