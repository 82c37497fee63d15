#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "answer_json.h"
#include "ask_questions.h"
#include "command.h"
#include "flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "numbers.h"
#include "sink_search.h"
#include "stream.h"
#include "whole_file.h"

namespace var_command {
namespace {

int interrupted_code() {
  return kInterrupted + InterruptScope::interrupted();
}

struct AskFlags {
  CommonFlags common;
  PromptFlags prompt;
  VarFlags var;
  GenerationFlags generation;
  QuestionFileFlags file;
  std::string model, question;
  std::optional<std::string> raw_prompt, logits;
  bool compare = false, json = false, discover_sinks = false;
};

libvar::Request make_request(const AskFlags& flags, const libvar::Model& model) {
  libvar::Request request;
  flags.prompt.fill(request);
  request.images.assign(flags.prompt.images.begin(), flags.prompt.images.end());
  request.question = flags.question;
  request.raw_prompt = flags.raw_prompt;
  request.var = flags.var.params(model);
  request.generation = flags.generation.generation();
  request.return_logits = flags.logits.has_value();
  return request;
}

/// The number of tokens from the start that both answers share; nothing where they are equal.
std::optional<std::size_t> first_difference(const libvar::Answer& first,
                                            const libvar::Answer& second) {
  if (first.tokens == second.tokens) return std::nullopt;
  const auto end = std::mismatch(first.tokens.begin(), first.tokens.end(), second.tokens.begin(),
                                 second.tokens.end());
  return static_cast<std::size_t>(end.first - first.tokens.begin());
}

std::string token_text(const libvar::Answer& answer, std::size_t index) {
  return index < answer.tokens.size() ? std::to_string(answer.tokens[index]) : "the end";
}

void print_difference(const libvar::Answer& with, const libvar::Answer& without) {
  if (const auto index = first_difference(with, without)) {
    std::printf("They part at token %zu: %s with VAR, %s without.\n", *index,
                token_text(with, *index).c_str(), token_text(without, *index).c_str());
  } else {
    std::printf("They are equal, token for token.\n");
  }
}

int compare(const AskFlags& flags, libvar::Session& session, libvar::Request request) {
  const auto answer_with = [&](bool enabled) {
    request.var.enabled = enabled;
    if (flags.json) return ask_quietly(session, request);
    std::fputs(enabled ? "with VAR:    " : "without VAR: ", stdout);
    return ask_streaming(session, request, Turn::kFirst);
  };
  const libvar::Answer with = answer_with(true);
  if (with.finish_reason == libvar::FinishReason::kCancelled) return interrupted_code();
  const libvar::Answer without = answer_with(false);
  if (without.finish_reason == libvar::FinishReason::kCancelled) return interrupted_code();
  if (!flags.json) {
    print_difference(with, without);
    return kDone;
  }
  nlohmann::ordered_json out = {{"with_var", answer_json(with)},
                                {"without_var", answer_json(without)}};
  const auto index = first_difference(with, without);
  out["first_difference"] =
      index ? nlohmann::ordered_json(*index) : nlohmann::ordered_json(nullptr);
  std::printf("%s\n", out.dump().c_str());
  return kDone;
}

/// The model with the sink dimensions that a search with the question's pictures finds.
std::shared_ptr<const libvar::Model> with_discovered_sinks(
    const AskFlags& flags, std::shared_ptr<const libvar::Model> model) {
  const libvar::SinkDiscovery found = search_sink_dimensions(*model, flags.prompt);
  if (found.dimensions.empty()) {
    flags.common.warn("--discover-sinks: found none");
    return model;
  }
  flags.common.log("sink dimensions " + list_text(found.dims()) + ", " + found.source);
  return model->with_sink_dimensions(found.dims(), found.source);
}

int ask(const AskFlags& flags) {
  flags.common.apply();
  flags.prompt.check();
  flags.var.check();
  std::vector<libvar::Question> questions;
  if (flags.file.questions) questions = flags.file.read();
  std::optional<WholeFile> logits;
  if (flags.logits) logits.emplace("logits", *flags.logits);

  auto model = load_model(flags.model, flags.common);
  flags.common.log(describe(*model));
  if (flags.discover_sinks) model = with_discovered_sinks(flags, std::move(model));
  if (!model->has_sink_dimensions() && !flags.var.no_var) {
    if (flags.compare) throw libvar::InputError("--compare: " + no_sink_dimensions(flags.model));
    flags.common.warn(no_sink_dimensions(flags.model, ", so this runs without it"));
  }
  const libvar::Request request = make_request(flags, *model);
  if (flags.file.questions) {
    return answer_questions(flags.file, questions, flags.model, model, request,
                            flags.generation.session(), flags.common);
  }
  libvar::Session session(model, flags.generation.session());
  const InterruptScope interrupt;
  if (flags.compare) return compare(flags, session, request);

  const libvar::Answer answer =
      flags.json ? ask_quietly(session, request) : ask_streaming(session, request, Turn::kFirst);
  if (flags.json) std::printf("%s\n", answer_json(answer).dump().c_str());
  if (logits) {
    const std::vector<char> bytes = torch::jit::pickle_save(answer.logits);
    logits->write({bytes.data(), bytes.size()});
  }
  flags.common.log(describe(answer));
  return answer.finish_reason == libvar::FinishReason::kCancelled ? interrupted_code() : kDone;
}

}  // namespace

void add_ask(CLI::App& app, Action& action) {
  const auto flags = std::make_shared<AskFlags>();
  CLI::App* command = app.add_subcommand("ask", "Answer one question, about pictures or without");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  CLI::Option* question = command->add_option(
      "QUESTION", flags->question,
      "<image> in it marks the places of the pictures; else they stand before its text");
  flags->prompt.add(*command);
  CLI::Option* raw_prompt =
      command
          ->add_option("--raw-prompt", flags->raw_prompt,
                       "The whole prompt with its <image> places, instead of QUESTION")
          ->type_name("TEXT")
          ->group("Prompt and images");
  for (const char* name : {"--system", "--prompt-style"})
    raw_prompt->excludes(command->get_option(name));
  flags->var.add(*command);
  command
      ->add_flag("--discover-sinks", flags->discover_sinks,
                 "Find the sink dimensions first and use them for this answer; nothing is stored")
      ->group("Visual Attention Redistribution")
      ->excludes("--no-var");
  flags->generation.add(*command);
  CLI::Option* compare = command->add_flag(
      "--compare", flags->compare,
      "Answer with VAR and without it, and show the token where the answers part");
  compare->excludes(command->get_option("--no-var"));
  command->add_flag(
      "--json", flags->json,
      "Print one JSON object; with --compare: with_var, without_var, first_difference");
  command
      ->add_option("--logits", flags->logits,
                   "Write the logits of each chosen token, for torch.load")
      ->type_name("FILE")
      ->excludes(compare);
  CLI::Option* questions = flags->file.add(*command);
  for (const char* name :
       {"QUESTION", "--raw-prompt", "--image", "--compare", "--json", "--logits"})
    questions->excludes(command->get_option(name));
  flags->common.add(*command, "Type of the computation; auto fits the device");
  command->footer(
      "Examples:\n  var ask llava.pt \"What is on the table?\" --image photo.jpg\n"
      "  var ask llava.pt \"Is there a dog?\" --image photo.jpg --preset hallucination --compare\n"
      "  var ask llava.pt --questions pope.jsonl --images val2014 --out answers.jsonl");
  command->callback([flags, command, question, raw_prompt, questions, &action] {
    if (questions->count() > 0 && command->count("--weights") == 0)
      flags->common.weights = "auto";  // many tokens are worth a copy
    if (question->count() + raw_prompt->count() + questions->count() == 0)
      throw CLI::RequiredError("QUESTION (or --raw-prompt, --questions)");
    action = [flags] { return ask(*flags); };
  });
}

}  // namespace var_command
