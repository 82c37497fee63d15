// Many questions at a time: each answer is the one that its question gets alone.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "golden_fixture.h"
#include "libvar/batch_session.h"
#include "libvar/error.h"
#include "libvar/session.h"
#include "temporary_folder.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

std::shared_ptr<const Model> mha() {
  static const std::shared_ptr<const Model> model = [] {
    LoadOptions options;
    options.device = "cpu";
    options.dtype = "fp32";
    return Model::load(golden_archive("mha"), options);
  }();
  return model;
}

/// Every run of a family's case, several times with other lengths, settings and pictures.
std::vector<Request> family_requests(const json& golden) {
  std::vector<Request> out;
  for (const json& run : golden.at("runs")) {
    for (const std::int64_t tokens : {3, 17, 30}) {
      Request request = family_request(run);
      request.generation.max_new_tokens = tokens;
      if (tokens == 17) {
        request.var.p = 0.3F;
        request.question += " yes";
      }
      if (tokens == 30) request.var.enabled = !request.var.enabled;
      out.push_back(std::move(request));
    }
  }
  return out;
}

std::vector<Answer> answers_of(const std::shared_ptr<const Model>& model,
                               const std::vector<Request>& requests, const BatchOptions& options) {
  std::vector<Answer> out;
  BatchSession session(model, options);
  session.ask(requests, [&](std::size_t index, const Answer& answer) {
    CHECK(index == out.size());
    out.push_back(answer);
    return true;
  });
  return out;
}

void check_equal(const Answer& actual, const Answer& alone, double bound) {
  CHECK(actual.text == alone.text);
  CHECK(actual.tokens == alone.tokens);
  CHECK(actual.prompt_tokens == alone.prompt_tokens);
  CHECK(actual.visual_spans == alone.visual_spans);
  CHECK(actual.finish_reason == alone.finish_reason);
  CHECK(actual.var.visual_sinks == alone.var.visual_sinks);
  CHECK(actual.var.selected_rows == alone.var.selected_rows);
  CHECK(actual.var.eligible_rows == alone.var.eligible_rows);
  CHECK(actual.timing.decode_tokens == alone.timing.decode_tokens);
  CHECK(relative_error(actual.logits, alone.logits) <= bound);
}

std::vector<Answer> alone(const std::shared_ptr<const Model>& model,
                          const std::vector<Request>& requests) {
  std::vector<Answer> out;
  Session session(model);
  for (const Request& request : requests) out.push_back(session.ask(request));
  return out;
}

}  // namespace

TEST_CASE("a batch answers each question as it is answered alone", "[batch][var]") {
  const std::string name = GENERATE(std::string("qwen_flat"), std::string("internvl_small"),
                                    std::string("vila1_inside"));
  CAPTURE(name);
  const auto model = load_family_case(family_case(name));
  std::vector<Request> requests = family_requests(family_case(name));
  std::shuffle(requests.begin(), requests.end(), std::mt19937(7));
  const std::vector<Answer> expected = alone(model, requests);
  std::size_t changed = 0;
  for (const Answer& answer : expected) {
    for (const std::int64_t rows : answer.var.selected_rows) changed += rows > 0 ? 1 : 0;
  }
  CHECK(changed > 5);
  for (const std::int64_t batch : {1, 3, 8}) {
    CAPTURE(batch);
    BatchOptions options;
    options.batch = batch;
    const std::vector<Answer> found = answers_of(model, requests, options);
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      CAPTURE(i);
      check_equal(found[i], expected[i], 2e-5);
    }
  }
}

TEST_CASE("questions about one image share its prefill, and their answers don't show it",
          "[batch]") {
  const json& golden = family_case("qwen_flat");
  const auto model = load_family_case(golden);
  Request request = family_request(golden.at("runs").at(0));
  request.generation.max_new_tokens = 6;
  REQUIRE(request.images.size() == 1);
  std::vector<Request> requests;
  for (const char* question : {"Is there a dog?", "What is it?", "How many?"}) {
    for (const float tau : {2.0F, 20.0F}) {
      request.question = question;
      request.var.tau = tau;
      requests.push_back(request);
    }
  }
  BatchOptions kept, none;
  kept.batch = none.batch = 1;
  none.prefixes = 0;
  const std::vector<Answer> shared = answers_of(model, requests, kept);
  const std::vector<Answer> apart = answers_of(model, requests, none);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    check_equal(shared[i], apart[i], 0.0);
    CHECK((shared[i].timing.vision_ms > 0) == (i == 0));
    CHECK(apart[i].timing.vision_ms > 0);
  }
  // Another picture of the same size is another prefix, and so are other sizes of the same one.
  const auto path = std::get<std::filesystem::path>(request.images.front());
  const auto [width, height] = std::pair<std::int64_t, std::int64_t>(90, 60);
  RgbImage one{width, height,
               std::vector<std::uint8_t>(static_cast<std::size_t>(width * height * 3), 90)};
  RgbImage other = one;
  other.pixels[4000] = 200;
  requests.clear();
  for (const ImageSource& source : {ImageSource(one), ImageSource(other), ImageSource(one)}) {
    request.images = {source};
    requests.push_back(request);
  }
  request.max_pixels = 56 * 56;
  requests.push_back(request);
  const std::vector<Answer> found = answers_of(model, requests, kept);
  const std::vector<Answer> expected = alone(model, requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    check_equal(found[i], expected[i], 2e-5);
    CHECK((found[i].timing.vision_ms > 0) == (i != 2));
  }
}

TEST_CASE("an answer's bits don't depend on what else is in the batch, in float32 on a CPU",
          "[batch]") {
  const json& golden = family_case("internvl_small");
  const auto model = load_family_case(golden);
  const std::vector<Request> requests = family_requests(golden);
  BatchOptions options;
  options.batch = 4;
  const std::vector<Answer> together = answers_of(model, requests, options);
  std::vector<Request> reversed(requests.rbegin(), requests.rend());
  const std::vector<Answer> otherwise = answers_of(model, reversed, options);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    check_equal(together[i], otherwise[requests.size() - 1 - i], 0.0);
  }
}

TEST_CASE("settings that can't share a step are answered one group after another", "[batch][var]") {
  std::vector<Request> requests;
  for (int i = 0; i < 7; ++i) {
    Request request;
    request.images = {golden_folder() /
                      golden_case("mha").at("runs").at(0).at("images").at(0).get<std::string>()};
    request.question = "What is it? " + std::to_string(i);
    request.generation.max_new_tokens = 5 + i;
    request.return_logits = true;
    request.var = mha()->var_defaults();
    if (i % 3 == 1) request.var = VarParams::reference();
    if (i % 3 == 2) request.var.generated_sinks = false;
    if (i == 4) request.images.clear();
    requests.push_back(request);
  }
  const std::vector<Answer> found = answers_of(mha(), requests, {});
  const std::vector<Answer> expected = alone(mha(), requests);
  for (std::size_t i = 0; i < requests.size(); ++i) {
    CAPTURE(i);
    check_equal(found[i], expected[i], 2e-5);
  }
}

TEST_CASE(
    "a batch gives answers in order, ends where the callback says so, and names what is wrong",
    "[batch]") {
  CHECK_THROWS_WITH(BatchSession(mha(), {0, 1, 0}), "BatchOptions: batch must be >= 1, got 0");
  CHECK_THROWS_AS(BatchSession(nullptr), ConfigError);
  Request request;
  request.question = "Hello";
  request.var.enabled = false;
  std::vector<Request> requests(6, request);
  for (std::size_t i = 0; i < requests.size(); ++i)  // the first takes longest
    requests[i].generation.max_new_tokens = static_cast<std::int64_t>(12 - 2 * i);
  BatchSession session(mha(), {3, 1, 0});
  std::vector<std::size_t> order;
  session.ask(requests, [&](std::size_t index, const Answer&) {
    order.push_back(index);
    return index < 3;
  });
  CHECK(order == std::vector<std::size_t>{0, 1, 2, 3});
  requests[1].images = {std::filesystem::path("none.png")};
  order.clear();
  const auto count = [&](std::size_t index, const Answer&) {
    order.push_back(index);
    return true;
  };
  CHECK_THROWS_AS(session.ask(requests, count), InputError);
  CHECK(order == std::vector<std::size_t>{0});  // those before it are answered first
  requests[1].images.clear();
  order.clear();
  session.ask(requests, count);  // a session goes on behind an error
  CHECK(order.size() == 6);
  session.ask({}, count);
  order.clear();
  int steps = 0;
  session.ask(requests, count, [&steps] { return ++steps < 4; });
  CHECK(steps == 4);
  CHECK(order.empty());
}

TEST_CASE("answers of one token are given before the next prompt is run", "[batch]") {
  Request request;
  request.question = "Hello";
  request.var.enabled = false;
  request.generation.max_new_tokens = 1;
  const std::vector<Request> requests(4, request);
  BatchSession session(mha(), {3, 1, 0});
  std::string events;
  session.ask(
      requests,
      [&](std::size_t, const Answer&) {
        events += 'a';
        return true;
      },
      [&] {
        events += 's';
        return true;
      });
  CHECK(events == "sasasasa");
}

TEST_CASE("what is answered is given before an error of another question", "[batch]") {
  Request request;
  request.question = "Hello";
  request.var.enabled = false;
  std::vector<Request> requests(3, request);
  requests[0].generation.max_new_tokens = 1;
  requests[1].question = "A long question. " + std::string(300, 'x');
  BatchOptions options;
  options.batch = 2;
  options.prefixes = 0;
  const auto model = mha();
  for (std::int64_t bytes = 1 << 16;; bytes += bytes / 8) {  // enough for the first alone
    REQUIRE(bytes < std::int64_t{1} << 40);
    options.memory_bytes = bytes;
    BatchSession session(model, options);
    std::vector<std::size_t> order;
    const auto ask = [&] {
      session.ask(requests, [&](std::size_t index, const Answer&) {
        order.push_back(index);
        return true;
      });
    };
    try {
      ask();
      FAIL("no budget was enough for the first question alone");
    } catch (const ResourceError&) {
      if (order.empty()) continue;
      CHECK(order == std::vector<std::size_t>{0});
      break;
    }
  }
}

TEST_CASE("an answer that ends in the step of another's error is given", "[batch]") {
  const json& golden = family_case("qwen_flat");
  // The first ends after one step and the third takes its place: in the second step, which takes
  // the sequences from the last to the first, the second ends before the third's error is found.
  std::vector<Request> requests(3);
  const std::vector<std::string> questions = {"Hello", "What is it?", "Is there a dog?"};
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].question = questions[i];
    requests[i].var.enabled = false;
    requests[i].generation.max_new_tokens = static_cast<std::int64_t>(i + 2);
  }
  FamilyCheckpoint checkpoint(golden);
  const std::vector<Answer> expected = alone(load_family_case(golden), requests);
  const std::int64_t poison = expected[2].tokens.at(1);  // what it gives the second step
  for (const Answer& answer : expected) {
    CHECK(std::count(answer.prompt_tokens.begin(), answer.prompt_tokens.end(), poison) == 0);
    CHECK(answer.tokens.front() != poison);
  }
  REQUIRE(expected[1].tokens.at(1) != poison);
  checkpoint.tensors.at("model.embed_tokens.weight")[poison].fill_(std::nan(""));
  BatchSession session(load_checkpoint(checkpoint, golden));
  std::vector<std::size_t> order;
  CHECK_THROWS_WITH(session.ask(requests,
                                [&](std::size_t index, const Answer& answer) {
                                  CHECK(answer.tokens == expected[index].tokens);
                                  order.push_back(index);
                                  return true;
                                }),
                    "sampler: the logits are not finite");
  CHECK(order == std::vector<std::size_t>{0, 1});
}

TEST_CASE("a prefix is known by the pictures' pixels, not by their files", "[batch]") {
  const TemporaryFolder folder;
  const auto paint = [&](const char* name, int grey, int corner) {  // a BMP of 2 x 2 pixels
    std::string bytes = "BM";
    const auto append = [&](std::uint32_t value, int size) {
      for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i));
    };
    for (const std::uint32_t value : {70U, 0U, 54U, 40U, 2U, 2U}) append(value, 4);
    append(1, 2);
    append(24, 2);
    bytes.resize(54, '\0');
    bytes.append(16, static_cast<char>(grey));
    bytes[54] = static_cast<char>(corner);
    write_bytes(folder / name, bytes);
  };
  const auto ask = [&](BatchSession& session, const std::vector<std::string>& names, float p) {
    Request request;
    for (const std::string& name : names) request.images.emplace_back(folder / name);
    request.question = "What is it?";
    request.var = mha()->var_defaults();
    request.var.p = p;
    request.generation.max_new_tokens = 8;
    request.return_logits = true;
    bool kept = false;
    session.ask({request}, [&](std::size_t, const Answer& answer) {
      check_equal(answer, alone(mha(), {request}).front(), 2e-5);
      kept = answer.timing.vision_ms == 0;
      return true;
    });
    return kept;
  };
  BatchOptions options;
  options.batch = options.prefixes = 1;
  BatchSession session(mha(), options);
  paint("a.bmp", 90, 90);
  CHECK_FALSE(ask(session, {"a.bmp"}, 0.6F));
  CHECK(ask(session, {"a.bmp"}, 0.3F));
  paint("b.bmp", 90, 90);
  CHECK(ask(session, {"b.bmp"}, 0.6F));
  paint("a.bmp", 90, 255);
  CHECK_FALSE(ask(session, {"a.bmp"}, 0.6F));
  // The text between two pictures sees the first: its rows are VAR's to change.
  CHECK_FALSE(ask(session, {"a.bmp", "b.bmp"}, 0.6F));
  CHECK(ask(session, {"a.bmp", "b.bmp"}, 0.6F));
  CHECK_FALSE(ask(session, {"a.bmp", "b.bmp"}, 0.3F));
  CHECK_FALSE(ask(session, {"b.bmp", "a.bmp"}, 0.3F));
}
