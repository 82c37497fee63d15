// var sinks ablate: a question file under settings of VAR that differ in one thing each.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <numeric>

#include "charts.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "numbers.h"
#include "pictures.h"
#include "question_flags.h"
#include "sinks.h"

namespace var_command {
namespace {

using libvar::class_set;
using libvar::TokenClass;
using nlohmann::ordered_json;

struct AblateFlags : QuestionFlags {
  std::vector<float> tau{10, 15, 20}, rho{0.5F, 0.65F, 0.8F, 0.95F},
      p{0.2F, 0.4F, 0.6F, 0.8F, 1.0F};
  std::vector<std::int64_t> first_layer;
  std::optional<std::string> plot;
};

/// One row of the table.
struct Setting {
  std::string group, name;
  libvar::VarParams var;
};

/// Tables 4 and 5 of the paper around the base settings, and a sweep of each parameter.
std::vector<Setting> settings_to_try(const AblateFlags& flags, const libvar::VarParams& base) {
  std::vector<Setting> out;
  const auto add = [&](const std::string& group, const std::string& name, const auto& change) {
    libvar::VarParams var = base;
    change(var);
    var.validate();
    out.push_back({group, name, var});
  };
  add("VAR", "off", [](auto& var) { var.enabled = false; });
  add("VAR", "on", [](auto&) {});
  add("heads", "all heads", [](auto& var) { var.head_rule = libvar::HeadRule::kAll; });
  add("targets", "text", [](auto& var) { var.targets = class_set(TokenClass::kTextNonSink); });
  add("targets", "visual and text", [](auto& var) {
    var.targets = class_set(TokenClass::kVisualNonSink, TokenClass::kTextNonSink);
  });
  add("sources", "visual sinks",
      [](auto& var) { var.sources = class_set(TokenClass::kVisualSink); });
  add("sources", "text sinks", [](auto& var) { var.sources = class_set(TokenClass::kTextSink); });
  for (const float value : flags.tau)
    add("tau", float_text(value), [&](auto& var) { var.tau = value; });
  for (const float value : flags.rho)
    add("rho", float_text(value), [&](auto& var) { var.rho = value; });
  for (const float value : flags.p) add("p", float_text(value), [&](auto& var) { var.p = value; });
  for (const std::int64_t value : flags.first_layer) {
    add("first_layer", std::to_string(value), [&](auto& var) { var.first_layer = value; });
  }
  return out;
}

ordered_json answer_all(const AblateFlags& flags, libvar::Session& session,
                        const std::vector<Setting>& settings, const libvar::Question& question) {
  auto results = ordered_json::array();
  for (const Setting& setting : settings) {
    const libvar::Answer answer = session.ask(flags.request(question, setting.var));
    const auto sum = [](const std::vector<std::int64_t>& values) {
      return std::accumulate(values.begin(), values.end(), std::int64_t{0});
    };
    results.push_back({{"answer", answer.text},
                       {"right", flags.is_right(answer.text, question)},
                       {"selected", sum(answer.var.selected_rows)},
                       {"eligible", sum(answer.var.eligible_rows)}});
  }
  return {{"results", std::move(results)}};
}

/// Accuracy, answers that differ from those without VAR, and the share of changed (head, row)
/// pairs.
ordered_json summarise(const std::vector<Setting>& settings,
                       const std::vector<ordered_json>& lines) {
  auto rows = ordered_json::array();
  for (std::size_t i = 0; i < settings.size(); ++i) {
    double right = 0, changed = 0, selected = 0, eligible = 0;
    for (const ordered_json& line : lines) {
      const ordered_json& one = line.at("results").at(i);
      right += one.at("right").get<bool>() ? 1 : 0;
      changed += one.at("answer") != line.at("results").at(0).at("answer") ? 1 : 0;
      selected += one.at("selected").get<double>();
      eligible += one.at("eligible").get<double>();
    }
    const auto count = static_cast<double>(lines.size());
    rows.push_back({{"group", settings[i].group},
                    {"setting", settings[i].name},
                    {"accuracy", right / count},
                    {"answers_changed", changed / count},
                    {"selected_share", eligible > 0 ? selected / eligible : 0.0}});
  }
  return {{"questions", lines.size()}, {"settings", std::move(rows)}};
}

void print_table(const ordered_json& summary) {
  std::printf("%zu questions\n\n", summary.at("questions").get<std::size_t>());
  std::printf("%-12s %-16s %9s %16s %21s\n", "", "setting", "accuracy", "answers changed",
              "(head, row) changed");
  std::string group;
  for (const ordered_json& row : summary.at("settings")) {
    const auto name = row.at("group").get<std::string>();
    std::printf("%-12s %-16s %7.2f %% %14.2f %% %19.2f %%\n", name == group ? "" : name.c_str(),
                row.at("setting").get<std::string>().c_str(),
                100 * row.at("accuracy").get<double>(),
                100 * row.at("answers_changed").get<double>(),
                100 * row.at("selected_share").get<double>());
    group = name;
  }
}

/// A parameter that is swept.
struct Sweep {
  const char* group;
  const char* name;
  double base;  ///< in the settings that the others differ from
};

/// Accuracies around which curves have room; at least two points of a percent.
std::pair<double, double> accuracy_range(const ordered_json& rows) {
  double least = 100, most = 0;
  for (const ordered_json& row : rows) {
    least = std::min(least, 100 * row.at("accuracy").get<double>());
    most = std::max(most, 100 * row.at("accuracy").get<double>());
  }
  const double room = std::max(1.0, 0.15 * (most - least));
  return {least - room, most + room};
}

/// Accuracy over the values of one parameter, the base's among them, beside that without VAR.
cv::Mat draw_sweep(const ordered_json& rows, const Sweep& sweep) {
  const auto accuracy = [](const ordered_json& row) {
    return 100 * row.at("accuracy").get<double>();
  };
  const double off = accuracy(rows.at(0)), on = accuracy(rows.at(1));
  std::map<double, double> points;
  for (const ordered_json& row : rows) {
    if (row.at("group") != sweep.group) continue;
    const double value = std::stod(row.at("setting").get<std::string>());
    if (std::isfinite(value)) points.emplace(value, accuracy(row));
  }
  points.emplace(sweep.base, on);
  LineChart chart;
  chart.caption = std::string("accuracy over ") + sweep.name;
  chart.x_name = sweep.name;
  chart.y_name = "accuracy, %";
  chart.y_range = accuracy_range(rows);
  chart.curves = {{"VAR", {points.begin(), points.end()}}, {"without VAR", {}}};
  for (const double x : {points.begin()->first, points.rbegin()->first})
    chart.curves[1].points.emplace_back(x, off);
  chart.labels = {{sweep.base, on, "base"}};
  return line_chart(chart);
}

/// Bars of the settings with a name, and a curve for each parameter with at least two values.
void draw_summary(const std::string& path, const ordered_json& summary,
                  const libvar::VarParams& base) {
  const ordered_json& rows = summary.at("settings");
  std::vector<Sweep> sweeps{{"tau", "tau", decimal(base.tau)},
                            {"rho", "rho", decimal(base.rho)},
                            {"p", "p", decimal(base.p)}};
  if (base.first_layer)
    sweeps.push_back({"first_layer", "first layer", static_cast<double>(*base.first_layer)});
  std::vector<cv::Mat> curves;
  for (const Sweep& sweep : sweeps) {
    const bool swept = std::any_of(rows.begin(), rows.end(), [&](const ordered_json& row) {
      return row.at("group") == sweep.group;
    });
    if (swept && std::isfinite(sweep.base)) curves.push_back(draw_sweep(rows, sweep));
  }
  std::vector<std::string> labels;
  std::vector<double> values;
  for (const ordered_json& row : rows) {
    const auto group = row.at("group").get<std::string>();
    const bool swept = std::any_of(sweeps.begin(), sweeps.end(),
                                   [&](const Sweep& sweep) { return sweep.group == group; });
    if (swept) continue;
    labels.push_back(group + " " + row.at("setting").get<std::string>());
    values.push_back(100 * row.at("accuracy").get<double>());
  }
  const cv::Mat bars = bar_chart(labels, values,
                                 "accuracy in percent, " +
                                     std::to_string(summary.at("questions").get<std::size_t>()) +
                                     " questions; the line: without VAR");
  write_picture(path, in_lines({bars, in_lines(curves, 2)}, 1));
}

ordered_json file_settings(const AblateFlags& flags, const std::vector<Setting>& settings) {
  ordered_json out = flags.settings("ablate");
  const libvar::VarParams& base = settings[1].var;
  out["tau"] = decimal(base.tau);
  out["rho"] = decimal(base.rho);
  out["p"] = decimal(base.p);
  out["min_visual_mass"] = decimal(base.min_visual_mass);
  out["first_layer"] = base.first_layer.value_or(-1);
  out["tried"] = ordered_json::array();
  for (const Setting& setting : settings)
    out["tried"].push_back(setting.group + " " + setting.name);
  return out;
}

int ablate(const AblateFlags& flags) {
  if (flags.var.no_var) throw libvar::ConfigError("--no-var: an ablation has no use for it");
  const std::vector<libvar::Question> questions = flags.read();
  const auto model = flags.open();
  const std::vector<Setting> settings = settings_to_try(flags, flags.var.params(*model));
  libvar::Session session(model);
  const std::vector<ordered_json> lines =
      run_questions(flags.out, file_settings(flags, settings), questions,
                    [&](const libvar::Question& question, std::size_t) {
                      return answer_all(flags, session, settings, question);
                    });
  const ordered_json summary = summarise(settings, lines);
  if (flags.plot) draw_summary(*flags.plot, summary, settings[1].var);
  return print_summary(flags.json, summary, print_table);
}

}  // namespace

void add_sinks_ablate(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<AblateFlags>();
  CLI::App* command = sinks.add_subcommand(
      "ablate", "Answer a question file under settings of VAR that differ in one thing each");
  flags->add(*command);
  const auto list = [&](const char* name, auto& values, const char* help) {
    command->add_option(name, values, help)->delimiter(',')->capture_default_str();
  };
  list("--tau-values", flags->tau, "Sink thresholds to try");
  list("--rho-values", flags->rho, "Least visual non-sink ratios to try");
  list("--p-values", flags->p, "Shares of the sinks' attention to try");
  list("--first-layer-values", flags->first_layer, "First layers to try");
  command->add_option("--plot", flags->plot, "Picture of the accuracies")->type_name("FILE.png");
  command->footer(
      "Example:\n  var sinks ablate llava.pt --questions pope.jsonl --images val2014 --scorer "
      "yes_no --out ablate.jsonl --plot ablate.png");
  command->callback([flags, &action] { action = [flags] { return ablate(*flags); }; });
}

}  // namespace var_command
