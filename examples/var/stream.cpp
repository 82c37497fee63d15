#include "stream.h"

#include <array>
#include <cstdio>

#include "interrupt.h"
#include "numbers.h"

namespace var_command {

libvar::Answer ask_streaming(libvar::Session& session, const libvar::Request& request, Turn turn) {
  const auto print = [](std::string_view piece) {
    std::fwrite(piece.data(), 1, piece.size(), stdout);
    std::fflush(stdout);
    return InterruptScope::interrupted() == 0;
  };
  libvar::Answer answer =
      turn == Turn::kFirst ? session.ask(request, print) : session.follow_up(request, print);
  std::fputs("\n", stdout);
  std::fflush(stdout);
  return answer;
}

libvar::Answer ask_quietly(libvar::Session& session, const libvar::Request& request) {
  return session.ask(request, [](std::string_view) { return InterruptScope::interrupted() == 0; });
}

std::string describe(const libvar::Model& model) {
  std::array<char, 64> load{};
  std::snprintf(load.data(), load.size(), "loaded in %.0f ms", model.load_ms());
  return model.family() + ", " + model.dtype() + " on " + model.device() + ", " + load.data();
}

std::string describe(const libvar::Answer& answer) {
  const libvar::Timing& timing = answer.timing;
  std::array<char, 256> text{};
  std::snprintf(text.data(), text.size(),
                "%zu prompt tokens, images %.0f ms, prompt %.0f ms; %zu new tokens, %.1f tokens/s; "
                "peak memory %s",
                answer.prompt_tokens.size(), timing.vision_ms, timing.prefill_ms,
                answer.tokens.size(), timing.tokens_per_second,
                bytes_text(timing.peak_memory_bytes).c_str());
  return text.data();
}

}  // namespace var_command
