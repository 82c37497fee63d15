// var sinks report: a page that shows what the words of answers look at, with VAR and without.

#include <algorithm>
#include <cstdio>

#include "answer_json.h"
#include "inspect_flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "libvar/report.h"
#include "numbers.h"
#include "progress_bar.h"
#include "question_flags.h"
#include "results_file.h"
#include "sink_search.h"
#include "sinks.h"
#include "whole_file.h"

namespace var_command {
namespace {

using nlohmann::ordered_json;

/// Of InspectFlags, `out` is the page.
struct ReportFlags : InspectFlags {
  std::optional<std::string> questions, images, title;
  std::optional<std::size_t> limit;
};

/// The question about every picture of a folder, by name.
std::vector<libvar::Question> folder_questions(const std::string& folder, const std::string& text) {
  std::vector<libvar::Question> out;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    std::string kind = entry.path().extension().string();
    std::transform(kind.begin(), kind.end(), kind.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    if (kind != ".png" && kind != ".jpg" && kind != ".jpeg" && kind != ".webp" && kind != ".bmp")
      continue;
    const std::string name = entry.path().filename().string();
    out.push_back({ordered_json(name).dump(), {entry.path()}, text});
  }
  if (error) throw libvar::InputError("--images " + folder + ": " + error.message());
  if (out.empty()) throw libvar::InputError("--images " + folder + ": holds no pictures");
  std::sort(out.begin(), out.end(),
            [](const auto& a, const auto& b) { return a.images < b.images; });
  return out;
}

std::vector<libvar::Question> read(const ReportFlags& flags) {
  if (!flags.images) return {};
  std::vector<libvar::Question> out =
      flags.questions ? libvar::read_questions(*flags.questions, *flags.images,
                                               {.image = true, .unique_id = true})
                      : folder_questions(*flags.images, flags.question);
  if (flags.limit && out.size() > *flags.limit) out.resize(*flags.limit);
  return out;
}

/// What every entry depends on.
ordered_json settings_of(const ReportFlags& flags, const libvar::Request& request) {
  const libvar::VarParams& var = request.var;
  ordered_json out = {{"task", "report"},
                      {"model", flags.model},
                      {"questions", flags.questions.value_or("")},
                      {"question", flags.question},
                      {"images", flags.images.value_or("")},
                      {"tau", decimal(var.tau)},
                      {"rho", decimal(var.rho)},
                      {"p", decimal(var.p)},
                      {"min_visual_mass", decimal(var.min_visual_mass)},
                      {"first_layer", var.first_layer.value_or(-1)},
                      {"preset", flags.var.preset.value_or("")},
                      {"layers", flags.layers.value_or("")},
                      {"max_new_tokens", flags.max_new_tokens},
                      {"dtype", flags.common.dtype}};
  out.update(prompt_json(request));
  return out;
}

/// One entry for each question; those that an interrupted run left in `partial` are not made again.
std::vector<std::string> question_entries(const ReportFlags& flags,
                                          const std::shared_ptr<const libvar::Model>& model,
                                          const std::vector<libvar::Question>& questions,
                                          libvar::ReportOptions options,
                                          const std::string& partial) {
  libvar::Request request = flags.request(*model);
  const auto entry = [&](const libvar::Question& question, std::size_t) -> ordered_json {
    request.images.assign(question.images.begin(), question.images.end());
    request.question = question.text;
    options.name = question.images.front().filename().string();
    return {{"entry", libvar::report_entry(model, request, options)}};
  };
  std::vector<std::string> out;
  for (const ordered_json& line :
       run_questions(partial, settings_of(flags, request), questions, entry))
    out.push_back(line.at("entry").get<std::string>());
  return out;
}

int report(const ReportFlags& flags) {
  flags.common.apply();
  flags.prompt.check();
  flags.var.check();
  const std::vector<libvar::Question> questions = read(flags);
  WholeFile page("report", *flags.out);
  const auto model = load_model(flags.model, flags.common);
  if (!model->has_sink_dimensions()) throw libvar::InputError(no_sink_dimensions(flags.model));
  libvar::ReportOptions options;
  if (flags.layers) options.head_layers = parse_layers(*flags.layers, model->num_layers());
  const std::string partial = *flags.out + ".entries.jsonl";
  std::vector<std::string> entries;
  if (flags.images) {
    entries = question_entries(flags, model, questions, options, partial);
  } else {
    const InterruptScope interrupt;
    options.name = std::filesystem::path(flags.prompt.images.front()).filename().string();
    entries.push_back(libvar::report_entry(model, flags.request(*model), options));
  }
  const std::string title = flags.title.value_or(
      "Visual attention sinks: " + std::filesystem::path(flags.model).filename().string());
  const std::string html = libvar::report_page(title, entries);
  page.write(html);
  std::error_code ignored;
  if (flags.images) std::filesystem::remove(partial, ignored);
  std::printf("%s: %zu %s, %.1f MB\n", flags.out->c_str(), entries.size(),
              entries.size() == 1 ? "question" : "questions",
              static_cast<double>(html.size()) / 1e6);
  return kDone;
}

}  // namespace

void add_sinks_report(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<ReportFlags>();
  CLI::App* command = sinks.add_subcommand(
      "report", "One HTML page: what each word of an answer looks at, with VAR and without");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  CLI::Option* question = command->add_option("QUESTION", flags->question,
                                              "About the pictures of --image together, or "
                                              "about each of --images");
  command->add_option("--out", flags->out, "The page")->required()->type_name("FILE.html");
  CLI::Option* images =
      command->add_option("--images", flags->images, "Folder of pictures")->type_name("DIR");
  CLI::Option* questions =
      command
          ->add_option("--questions", flags->questions,
                       "JSON Lines with question_id, image, text in place of QUESTION")
          ->type_name("FILE")
          ->needs(images)
          ->excludes(question);
  command->add_option("--limit", flags->limit, "Only the first pictures or questions")
      ->needs(images);
  command
      ->add_option("--layers", flags->layers,
                   "Layers whose heads the page holds one by one; all unless given")
      ->type_name("A-B");
  command->add_option("--title", flags->title, "Of the page");
  command->add_option("--max-new-tokens", flags->max_new_tokens, "Most tokens of an answer")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{4096}))
      ->capture_default_str();
  flags->prompt.add(*command);
  flags->var.add(*command);
  CLI::Option* image = command->get_option("--image");
  image->excludes(images);
  flags->common.add(*command, "Type of the computation; auto fits the device");
  command->footer(
      "Examples:\n  var sinks report llava.pt \"Is there a bird?\" --image photo.jpg --out "
      "report.html\n  var sinks report llava.pt \"What is it?\" --images photos --out report.html");
  command->callback([flags, command, question, questions, image, images, &action] {
    if (questions->count() > 0 && command->count("--weights") == 0)
      flags->common.weights = "auto";  // many tokens are worth a copy
    if (image->count() + images->count() == 0) throw CLI::RequiredError("--image (or --images)");
    if (question->count() + questions->count() == 0)
      throw CLI::RequiredError("QUESTION (or --questions)");
    action = [flags] { return report(*flags); };
  });
}

}  // namespace var_command
