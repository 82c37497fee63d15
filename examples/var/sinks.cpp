#include "libvar/analysis.h"

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "command.h"
#include "flags.h"
#include "interrupt.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "numbers.h"
#include "progress_bar.h"
#include "sink_search.h"
#include "sinks.h"

namespace var_command {
namespace {

struct DiscoverFlags {
  CommonFlags common;
  PromptFlags prompt;
  std::string model;
  bool save = false, json = false;
};

nlohmann::ordered_json discovery_json(const libvar::SinkDiscovery& found, bool saved) {
  auto dimensions = nlohmann::ordered_json::array();
  for (const libvar::FoundSinkDimension& one : found.dimensions) {
    dimensions.push_back(
        {{"dimension", one.dimension}, {"times_median", one.times_median}, {"layers", one.layers}});
  }
  return {{"sink_dims", found.dims()},
          {"source", found.source},
          {"text_prompts", found.text_prompts},
          {"image_prompts", found.image_prompts},
          {"middle_layers", {found.middle_layers.first, found.middle_layers.second}},
          {"dimensions", std::move(dimensions)},
          {"tau", decimal(found.tau)},
          {"first_token_phi", found.first_token_phi},
          {"visual_sink_share", found.visual_sink_share},
          {"saved", saved}};
}

void print_table(const libvar::SinkDiscovery& found, const libvar::Model& model) {
  if (found.dimensions.empty()) {
    std::printf("No sink dimensions found (%lld text prompts, %lld images).\n",
                static_cast<long long>(found.text_prompts),
                static_cast<long long>(found.image_prompts));
    if (model.has_sink_dimensions())
      std::printf("The archive's own stay: %s.\n", list_text(model.sink_dimensions()).c_str());
    return;
  }
  std::printf("dimension  times the median  massive in layers\n");
  for (const libvar::FoundSinkDimension& one : found.dimensions) {
    std::printf("%9lld  %16.0f  %s\n", static_cast<long long>(one.dimension), one.times_median,
                list_text(one.layers).c_str());
  }
  std::printf("\nlayer  phi of the first token");
  if (!found.visual_sink_share.empty())
    std::printf("  visual tokens with phi >= %s", float_text(found.tau).c_str());
  std::printf("\n");
  for (std::size_t i = 0; i < found.first_token_phi.size(); ++i) {
    std::printf("%5zu  %22.2f", i, found.first_token_phi[i]);
    if (!found.visual_sink_share.empty())
      std::printf("  %23.2f %%", 100.0 * found.visual_sink_share[i]);
    std::printf("\n");
  }
  std::printf("\n%s\n", found.source.c_str());
}

void save(const DiscoverFlags& flags, const libvar::SinkDiscovery& found) {
  const InterruptScope interrupt;
  ProgressBar bar("writing");
  libvar::save_sink_dimensions(flags.model, found.dims(), found.source,
                               [&bar](std::int64_t done, std::int64_t total) {
                                 InterruptScope::check();
                                 bar.update(done, total);
                               });
}

int discover(const DiscoverFlags& flags) {
  flags.common.apply();
  flags.prompt.check();
  const auto model = load_model(flags.model, flags.common);
  const libvar::SinkDiscovery found = search_sink_dimensions(*model, flags.prompt);
  const bool saves = flags.save && !found.dimensions.empty();
  if (saves) save(flags, found);
  if (flags.json) {
    std::printf("%s\n", discovery_json(found, saves).dump().c_str());
  } else {
    print_table(found, *model);
    if (saves) std::printf("stored in %s\n", flags.model.c_str());
  }
  if (flags.save && !saves)
    throw libvar::InputError("--save: no sink dimensions were found, " + flags.model +
                             " stays as it is");
  return kDone;
}

void add_discover(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<DiscoverFlags>();
  CLI::App* command =
      sinks.add_subcommand("discover", "Find the sink dimensions of the language model");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  command->add_flag("--save", flags->save, "Store in MODEL.pt what was found");
  command->add_flag("--json", flags->json, "Print a JSON object");
  flags->prompt.add(*command);
  flags->common.add(*command, "Type of the computation; auto fits the device");
  command->footer("Example:\n  var sinks discover llava.pt --image photo.jpg --save");
  command->callback([flags, &action] { action = [flags] { return discover(*flags); }; });
}

}  // namespace

void add_sinks(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("sinks", "Study the attention sinks of a model");
  command->require_subcommand(1);
  command->footer("Example:\n  var sinks discover llava.pt --save");
  add_discover(*command, action);
  add_sinks_show(*command, action);
  add_sinks_heads(*command, action);
  add_sinks_contribution(*command, action);
  add_sinks_knockout(*command, action);
  add_sinks_background(*command, action);
  add_sinks_ablate(*command, action);
  add_sinks_report(*command, action);
}

}  // namespace var_command
