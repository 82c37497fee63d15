// var sinks background: how many visual sinks fall on background, beside what chance would give.

#include <ATen/TensorOperators.h>

#include <cmath>
#include <cstdio>

#include "inspect_flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "masks.h"
#include "pictures.h"
#include "progress_bar.h"
#include "question_flags.h"
#include "results_file.h"
#include "sink_search.h"
#include "sinks.h"

namespace var_command {
namespace {

using nlohmann::ordered_json;

struct BackgroundFlags {
  CommonFlags common;
  VarFlags var;
  std::string model, images, out, question = "Describe the image.";
  std::optional<std::string> voc, coco;
  std::optional<std::size_t> limit;
  bool json = false;
};

/// For each layer: visual sinks, and those on background; and the same of all visual tokens,
/// chance.
ordered_json measure(const std::shared_ptr<const libvar::Model>& model,
                     const BackgroundFlags& flags, const Masks& masks, const std::string& name) {
  const std::filesystem::path path = std::filesystem::path(flags.images) / name;
  // Masks have the picture's stored size: EXIF rotation is off.
  const cv::Mat picture = read_picture(path.string(), /*exif_rotation=*/false);
  libvar::Request request;
  request.images = {path};
  request.question = flags.question;
  request.exif_rotation = false;
  request.var = flags.var.params(*model);
  request.generation.max_new_tokens = 1;
  const libvar::Inspection found = libvar::inspect(model, request);
  const cv::Mat mask = masks.mask(name, picture.size());
  const libvar::InspectedImage& image = found.images.front();
  std::vector<double> share;
  for (const libvar::TokenBox& box : image.boxes) share.push_back(background_share(mask, box));
  std::int64_t tokens = 0, background = 0;
  for (const double one : share) {
    if (std::isnan(one)) continue;
    ++tokens;
    background += one >= 0.5 ? 1 : 0;
  }
  auto sinks = ordered_json::array(), on_background = ordered_json::array();
  for (std::int64_t layer = 0; layer < found.sink_scores.size(0); ++layer) {
    std::int64_t count = 0, hits = 0;
    for (const std::int64_t position : visual_sinks(found, layer, request.var.tau)) {
      const double one = share[static_cast<std::size_t>(position - image.positions.first)];
      if (std::isnan(one)) continue;
      ++count;
      hits += one >= 0.5 ? 1 : 0;
    }
    sinks.push_back(count);
    on_background.push_back(hits);
  }
  return {{"question_id", name},
          {"visual_tokens", tokens},
          {"on_background", background},
          {"sinks", std::move(sinks)},
          {"sinks_on_background", std::move(on_background)}};
}

ordered_json summarise(const std::vector<ordered_json>& lines) {
  double tokens = 0, background = 0;
  std::vector<double> sinks, hits;
  for (const ordered_json& line : lines) {
    tokens += line.at("visual_tokens").get<double>();
    background += line.at("on_background").get<double>();
    sinks.resize(line.at("sinks").size());
    hits.resize(sinks.size());
    for (std::size_t i = 0; i < sinks.size(); ++i) {
      sinks[i] += line.at("sinks")[i].get<double>();
      hits[i] += line.at("sinks_on_background")[i].get<double>();
    }
  }
  auto layers = ordered_json::array();
  for (std::size_t i = 0; i < sinks.size(); ++i) {
    layers.push_back({{"layer", i},
                      {"sinks", sinks[i]},
                      {"background_share",
                       sinks[i] > 0 ? ordered_json(hits[i] / sinks[i]) : ordered_json(nullptr)}});
  }
  return {{"pictures", lines.size()},
          {"visual_tokens", tokens},
          {"chance", tokens > 0 ? background / tokens : 0.0},
          {"layers", std::move(layers)}};
}

void print_table(const ordered_json& summary) {
  std::printf("%zu pictures; background by chance: %.2f %% of %.0f visual tokens\n\n",
              summary.at("pictures").get<std::size_t>(), 100 * summary.at("chance").get<double>(),
              summary.at("visual_tokens").get<double>());
  std::printf("layer   visual sinks  on background\n");
  for (const ordered_json& layer : summary.at("layers")) {
    const ordered_json& share = layer.at("background_share");
    std::printf("%5zu  %13.0f  ", layer.at("layer").get<std::size_t>(),
                layer.at("sinks").get<double>());
    if (share.is_null()) {
      std::printf("-\n");
    } else {
      std::printf("%11.2f %%\n", 100 * share.get<double>());
    }
  }
}

int background(const BackgroundFlags& flags) {
  flags.common.apply();
  flags.var.check();
  const std::unique_ptr<Masks> masks =
      flags.voc ? voc_masks(*flags.voc, flags.images) : coco_masks(flags.coco.value_or(""));
  std::vector<std::string> pictures = masks->pictures();
  if (flags.limit && pictures.size() > *flags.limit) pictures.resize(*flags.limit);
  const auto model = load_model(flags.model, flags.common);
  if (!model->has_sink_dimensions()) throw libvar::InputError(no_sink_dimensions(flags.model));
  const InterruptScope interrupt;  // before the file of results is there
  ResultsFile results(flags.out, {{"task", "background"},
                                  {"model", flags.model},
                                  {"images", flags.images},
                                  {"question", flags.question},
                                  {"tau", flags.var.params(*model).tau},
                                  {"dtype", flags.common.dtype}});
  std::vector<ordered_json> lines;
  {
    ProgressBar bar("pictures", ProgressBar::Unit::kPieces);
    for (const std::string& name : pictures) {
      InterruptScope::check();
      const std::string id = ordered_json(name).dump();
      if (!results.has(id)) results.add(id, measure(model, flags, *masks, name));
      lines.push_back(results.lines().at(id));
      bar.update(static_cast<std::int64_t>(lines.size()),
                 static_cast<std::int64_t>(pictures.size()));
    }
  }
  const ordered_json summary = summarise(lines);
  return print_summary(flags.json, summary, print_table);
}

}  // namespace

void add_sinks_background(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<BackgroundFlags>();
  CLI::App* command = sinks.add_subcommand(
      "background", "Share of the visual sinks that fall on the background of segmented pictures");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  command->add_option("--images", flags->images, "Folder of the pictures")
      ->required()
      ->type_name("DIR");
  CLI::Option* voc =
      command->add_option("--voc", flags->voc, "Folder of PASCAL VOC masks, PNG of the same names")
          ->type_name("DIR");
  CLI::Option* coco =
      command->add_option("--coco", flags->coco, "COCO instances")->type_name("FILE.json");
  voc->excludes(coco);
  command->add_option("--out", flags->out, "Results, a JSON object a line; gone on with")
      ->required()
      ->type_name("FILE");
  command->add_option("--question", flags->question, "Asked about every picture")
      ->capture_default_str();
  command->add_option("--limit", flags->limit, "Only the first pictures");
  command->add_flag("--json", flags->json, "Print the summary as a JSON object");
  flags->var.add(*command);
  flags->common.add(*command, "Type of the computation; auto fits the device");
  command->footer(
      "Example:\n  var sinks background llava.pt --images JPEGImages --voc SegmentationClass --out "
      "background.jsonl");
  command->callback([flags, voc, coco, &action] {
    if (voc->count() + coco->count() == 0) throw CLI::RequiredError("--voc (or --coco)");
    action = [flags] { return background(*flags); };
  });
}

}  // namespace var_command
