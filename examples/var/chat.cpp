#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "command.h"
#include "flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "libvar/version.h"
#include "sink_search.h"
#include "stream.h"

namespace var_command {
namespace {

struct ChatFlags {
  CommonFlags common;
  PromptFlags prompt;
  VarFlags var;
  GenerationFlags generation;
  std::string model;
};

constexpr const char* kHelp =
    "/image FILE    show a picture with the next question (several: one command each)\n"
    "/var on|off    answer with Visual Attention Redistribution or without, from the next answer "
    "on\n"
    "/reset         forget the conversation and the pictures\n"
    "/help          this list\n"
    "/quit          leave, as the end of the input does\n"
    "Anything else is a question. Ctrl-C ends an answer; at the prompt it leaves.\n";

/// A conversation line by line.
class Chat {
 public:
  Chat(const ChatFlags& flags, std::shared_ptr<const libvar::Model> model)
      : flags_(flags),
        model_(std::move(model)),
        session_(model_, flags.generation.session()),
        interactive_(isatty(STDIN_FILENO) == 1) {
    flags_.prompt.fill(request_);
    request_.images.assign(flags_.prompt.images.begin(), flags_.prompt.images.end());
    request_.var = flags_.var.params(*model_);
    request_.generation = flags_.generation.generation();
  }

  /// Reads to the end of the input. A line that can't be carried out is an error; the conversation
  /// goes on.
  int run() {
    if (interactive_)
      std::fprintf(stderr, "libvar %s: %s. /help lists the commands.\n", libvar::version(),
                   describe(*model_).c_str());
    int code = kDone;
    std::string line;
    while (!quit_ && read_line(line)) {
      try {
        carry_out(line);
      } catch (const libvar::Error& error) {
        std::fprintf(stderr, "var: error: %s\n", error.what());
        if (turn_ == Turn::kFurther && session_.length() == 0) {
          std::fputs("var: the conversation and its pictures are forgotten\n", stderr);
          turn_ = Turn::kFirst;
        }
        code = interactive_ ? kDone : kFailed;
      }
    }
    return code;
  }

 private:
  bool read_line(std::string& line) const {
    if (interactive_) std::fputs("> ", stderr);
    const bool read = static_cast<bool>(std::getline(std::cin, line));
    if (!read && interactive_) std::fputs("\n", stderr);
    while (!line.empty() && (line.back() == ' ' || line.back() == '\r')) line.pop_back();
    return read;
  }

  void carry_out(const std::string& line) {
    if (line.empty()) return;
    if (line.front() != '/') return answer(line);
    const std::size_t space = line.find(' ');
    const std::string command = line.substr(0, space);
    const std::size_t begin =
        space == std::string::npos ? line.size() : line.find_first_not_of(' ', space);
    const std::string argument = line.substr(begin);
    if (command == "/image" && !argument.empty()) {
      check_image_file(argument);
      request_.images.emplace_back(std::filesystem::path(argument));
    } else if (command == "/var" && (argument == "on" || argument == "off")) {
      switch_var(argument == "on");
    } else if (line == "/reset") {
      session_.reset();
      request_.images.clear();
      turn_ = Turn::kFirst;
    } else if (line == "/help") {
      std::fputs(kHelp, stderr);
    } else if (line == "/quit") {
      quit_ = true;
    } else {
      throw libvar::InputError("unknown command: " + line + " (/help lists the commands)");
    }
  }

  void switch_var(bool on) {
    if (on && !model_->has_sink_dimensions())
      throw libvar::InputError(no_sink_dimensions(flags_.model));
    request_.var.enabled = on;
  }

  void answer(const std::string& question) {
    const InterruptScope interrupt;
    libvar::Request request = request_;
    request.question = question;
    request_.images
        .clear();  // a picture that can't be read is not tried again with the next question
    const libvar::Answer answer = ask_streaming(session_, request, turn_);
    flags_.common.log(describe(answer));
    turn_ = Turn::kFurther;
  }

  const ChatFlags& flags_;
  std::shared_ptr<const libvar::Model> model_;
  libvar::Session session_;
  libvar::Request request_;  ///< the pictures wait in it for the next question
  Turn turn_ = Turn::kFirst;
  bool interactive_, quit_ = false;
};

int chat(const ChatFlags& flags) {
  flags.common.apply();
  flags.prompt.check();
  flags.var.check();
  const auto model = load_model(flags.model, flags.common);
  if (!model->has_sink_dimensions() && !flags.var.no_var) {
    flags.common.warn(no_sink_dimensions(flags.model, ", so this runs without it"));
  }
  return Chat(flags, model).run();
}

}  // namespace

void add_chat(CLI::App& app, Action& action) {
  const auto flags = std::make_shared<ChatFlags>();
  CLI::App* command = app.add_subcommand("chat", "Talk about pictures, line by line");
  command->add_option("MODEL.pt", flags->model, "Archive written by var convert")->required();
  flags->prompt.add(*command);
  flags->var.add(*command);
  flags->generation.add(*command);
  flags->common.weights = "auto";  // many tokens are worth a copy
  flags->common.add(*command, "Type of the computation; auto fits the device");
  command->footer(
      std::string("Lines that start with / are commands:\n") + kHelp +
      "\nExamples:\n  var chat llava.pt --image photo.jpg\n"
      "  printf 'What is this?\\nWhat colour is it?\\n' | var chat llava.pt --image photo.jpg");
  command->callback([flags, &action] { action = [flags] { return chat(*flags); }; });
}

}  // namespace var_command
