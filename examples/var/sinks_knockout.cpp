// var sinks knockout: a question file without the attention to visual sinks, and without that to as
// many other visual tokens.

#include <cmath>
#include <cstdio>
#include <numeric>

#include "libvar/knockout.h"
#include "numbers.h"
#include "question_flags.h"
#include "sinks.h"

namespace var_command {
namespace {

using nlohmann::ordered_json;

struct KnockoutFlags : QuestionFlags {
  std::int64_t repeats = 3;
  std::uint64_t seed = 0;
  bool keep_mass = false;
};

/// Results of one way to answer all questions.
struct Outcome {
  std::string name;
  std::vector<double> right, log_prob;  // per question

  static double mean(const std::vector<double>& values) {
    return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  }
};

ordered_json settings_of(const KnockoutFlags& flags, const libvar::VarParams& var) {
  ordered_json out = flags.settings("knockout");
  out.update({{"tau", decimal(var.tau)},
              {"first_layer", var.first_layer.value_or(-1)},
              {"keep_mass", flags.keep_mass},
              {"repeats", flags.repeats},
              {"seed", flags.seed}});
  return out;
}

ordered_json answer_all(const KnockoutFlags& flags,
                        const std::shared_ptr<const libvar::Model>& model,
                        const libvar::VarParams& var, const libvar::Question& question,
                        std::size_t place) {
  const libvar::Request request = flags.request(question, var);
  const std::vector<std::int64_t> label =
      libvar::answer_tokens(*model, question.label.value_or(""));
  libvar::Knockout knockout;
  knockout.keep_mass = flags.keep_mass;
  const auto answer = [&](libvar::KnockoutTokens tokens) -> ordered_json {
    knockout.tokens = tokens;
    const libvar::KnockoutAnswer found = libvar::knock_out(model, request, knockout, label);
    const double log_prob =
        std::accumulate(found.expected_log_probs.begin(), found.expected_log_probs.end(), 0.0);
    return {{"answer", found.answer.text},
            {"right", flags.is_right(found.answer.text, question)},
            {"label_log_prob", log_prob},
            {"removed", found.knocked_out}};
  };
  ordered_json out = {{"none", answer(libvar::KnockoutTokens::kNone)},
                      {"sinks", answer(libvar::KnockoutTokens::kSinks)},
                      {"random", ordered_json::array()}};
  for (std::int64_t repeat = 0; repeat < flags.repeats; ++repeat) {
    // Another draw for each question and repeat; the same whenever it is run.
    knockout.seed = flags.seed + static_cast<std::uint64_t>(repeat) * 7919 + place * 104729;
    out["random"].push_back(answer(libvar::KnockoutTokens::kRandom));
  }
  return out;
}

std::vector<Outcome> outcomes(const std::vector<ordered_json>& lines, std::int64_t repeats) {
  std::vector<Outcome> out{{"none", {}, {}}, {"sinks", {}, {}}};
  for (std::int64_t i = 0; i < repeats; ++i) out.push_back({"random", {}, {}});
  for (const ordered_json& line : lines) {
    for (std::size_t i = 0; i < out.size(); ++i) {
      const ordered_json& one = i < 2 ? line.at(out[i].name) : line.at("random").at(i - 2);
      out[i].right.push_back(one.at("right").get<bool>() ? 1 : 0);
      out[i].log_prob.push_back(one.at("label_log_prob").get<double>());
    }
  }
  return out;
}

/// Mean and standard deviation over the repeats.
std::pair<double, double> over_repeats(const std::vector<double>& values) {
  const double mean = Outcome::mean(values);
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  const auto count = static_cast<double>(values.size());
  return {mean, count > 1 ? std::sqrt(squares / (count - 1)) : 0.0};
}

ordered_json summary_json(const std::vector<Outcome>& all, std::size_t questions) {
  const double plain = Outcome::mean(all[0].right), plain_log = Outcome::mean(all[0].log_prob);
  std::vector<double> accuracy, log_prob;
  for (std::size_t i = 2; i < all.size(); ++i) {
    accuracy.push_back(Outcome::mean(all[i].right));
    log_prob.push_back(Outcome::mean(all[i].log_prob));
  }
  ordered_json out = {{"questions", questions},
                      {"none", {{"accuracy", plain}, {"label_log_prob", plain_log}}},
                      {"sinks",
                       {{"accuracy", Outcome::mean(all[1].right)},
                        {"label_log_prob", Outcome::mean(all[1].log_prob)}}}};
  if (!accuracy.empty()) {
    const auto [mean, spread] = over_repeats(accuracy);
    const auto [log_mean, log_spread] = over_repeats(log_prob);
    out["random"] = {{"accuracy", mean},
                     {"accuracy_spread", spread},
                     {"label_log_prob", log_mean},
                     {"label_log_prob_spread", log_spread},
                     {"repeats", accuracy.size()}};
  }
  return out;
}

void print_table(const ordered_json& summary) {
  const double plain = summary.at("none").at("accuracy"),
               plain_log = summary.at("none").at("label_log_prob");
  std::printf(
      "%zu questions\n\nremoved          accuracy   change  log-probability of the label  change\n",
      summary.at("questions").get<std::size_t>());
  for (const char* name : {"none", "sinks", "random"}) {
    if (!summary.contains(name)) continue;
    const ordered_json& one = summary.at(name);
    const double accuracy = one.at("accuracy"), log_prob = one.at("label_log_prob");
    std::printf("%-15s  %6.2f %%  %+6.2f  %28.4f  %+.4f", name, 100 * accuracy,
                100 * (accuracy - plain), log_prob, log_prob - plain_log);
    if (one.contains("accuracy_spread")) {
      std::printf("   (spread over %zu repeats: %.2f points, %.4f)",
                  one.at("repeats").get<std::size_t>(),
                  100 * one.at("accuracy_spread").get<double>(),
                  one.at("label_log_prob_spread").get<double>());
    }
    std::printf("\n");
  }
}

int knockout(const KnockoutFlags& flags) {
  const std::vector<libvar::Question> questions = flags.read();
  const auto model = flags.open();
  const libvar::VarParams var = flags.var.params(*model);
  const std::vector<ordered_json> lines =
      run_questions(flags.out, settings_of(flags, var), questions,
                    [&](const libvar::Question& question, std::size_t place) {
                      return answer_all(flags, model, var, question, place);
                    });
  const ordered_json summary = summary_json(outcomes(lines, flags.repeats), questions.size());
  return print_summary(flags.json, summary, print_table);
}

}  // namespace

void add_sinks_knockout(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<KnockoutFlags>();
  CLI::App* command = sinks.add_subcommand(
      "knockout",
      "Answer a question file without the attention to visual sinks, and to other tokens");
  flags->add(*command);
  command->add_option("--repeats", flags->repeats, "Random draws for each question")
      ->check(CLI::Range(std::int64_t{0}, std::int64_t{1000}))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the random draws")->capture_default_str();
  command->add_flag("--keep-mass", flags->keep_mass,
                    "Set the attention to 0 behind the softmax; what is left is not normalised");
  command->footer(
      "Example:\n  var sinks knockout llava.pt --questions pope.jsonl --images val2014 --scorer "
      "yes_no --out knockout.jsonl");
  command->callback([flags, &action] { action = [flags] { return knockout(*flags); }; });
}

}  // namespace var_command
