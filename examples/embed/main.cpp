// The smallest program on libvar: embed MODEL.pt IMAGE QUESTION

#include <libvar/libvar.h>

#include <cstdio>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: embed MODEL.pt IMAGE QUESTION\n");
    return 2;
  }
  try {
    const auto model = libvar::Model::load(argv[1]);
    libvar::Session session(model);
    const libvar::Answer answer =
        session.ask({.images = {argv[2]}, .question = argv[3], .var = {.rho = 0.5f}},
                    [](std::string_view piece) {
                      std::fwrite(piece.data(), 1, piece.size(), stdout);
                      return true;
                    });
    std::printf("\n(%zu tokens, %.0f ms of prefill)\n", answer.tokens.size(),
                answer.timing.prefill_ms);
  } catch (const libvar::Error& error) {
    std::fprintf(stderr, "embed: %s\n", error.what());
    return 1;
  }
  return 0;
}
