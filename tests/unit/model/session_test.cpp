#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/equal.h>
#include <c10/core/InferenceMode.h>

#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "catch.h"
#include "generate/conversation.h"
#include "golden_fixture.h"
#include "image/image.h"
#include "libvar/convert.h"
#include "libvar/error.h"
#include "libvar/model.h"
#include "libvar/session.h"
#include "loaded_model.h"
#include "temporary_folder.h"

using namespace libvar;
using namespace libvar::testing;
using Catch::Matchers::Contains;

namespace {

LoadOptions cpu_float32() {
  LoadOptions options;
  options.device = "cpu";
  options.dtype = "fp32";
  return options;
}

std::shared_ptr<const Model> mha() {
  static const std::shared_ptr<const Model> model =
      Model::load(golden_archive("mha"), cpu_float32());
  return model;
}

Request cat_question(std::int64_t max_new_tokens = 12) {
  Request request;
  request.images = {golden_folder() / "images/landscape.png"};
  request.question = "Where is the red cat?";
  request.generation.max_new_tokens = max_new_tokens;
  return request;
}

Answer ask(const Request& request, const TextCallback& on_text = {}) {
  return Session(mha()).ask(request, on_text);
}

RgbImage rgb_image(const at::Tensor& pixels) {
  RgbImage image;
  image.height = pixels.size(0);
  image.width = pixels.size(1);
  image.pixels.assign(pixels.const_data_ptr<std::uint8_t>(),
                      pixels.const_data_ptr<std::uint8_t>() + pixels.numel());
  return image;
}

/// The golden mha checkpoint, changed and converted.
std::shared_ptr<const Model> changed_model(const std::string& file,
                                           const std::function<void(nlohmann::json&)>& change,
                                           ConvertOptions options = {}) {
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "hf", golden_case("mha"));
  nlohmann::json content = nlohmann::json::parse(read_bytes(folder / ("hf/" + file)));
  change(content);
  write_bytes(folder / ("hf/" + file), content.dump());
  convert_checkpoint(folder / "hf", folder / "model.pt", options);
  return Model::load(folder / "model.pt", cpu_float32());
}

}  // namespace

TEST_CASE("a model says what it is", "[model]") {
  CHECK(mha()->family() == "llava");
  CHECK(mha()->device() == "cpu");
  CHECK(mha()->dtype() == "float32");
  CHECK(mha()->context_length() == 512);
  CHECK(mha()->num_layers() == 5);
  CHECK(mha()->has_sink_dimensions());
  CHECK(mha()->var_defaults().first_layer == 2);
  CHECK(mha()->load_ms() > 0);
  LoadOptions options = cpu_float32();
  std::int64_t last = 0, total = 0;
  options.on_progress = [&](std::int64_t done, std::int64_t all) {
    CHECK(done >= last);
    last = done;
    total = all;
  };
  Model::load(golden_archive("mha"), options);
  CHECK(last > 0);
  CHECK(last <= total);
}

TEST_CASE("devices and dtypes that don't exist are refused", "[model]") {
  const auto load = [](const std::string& device, const std::string& dtype) {
    LoadOptions options;
    options.device = device;
    options.dtype = dtype;
    return Model::load(golden_archive("mha"), options);
  };
  for (const std::string device : {"gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:99", ""}) {
    CAPTURE(device);
    CHECK_THROWS_AS(load(device, "fp32"), ConfigError);
  }
  CHECK_THROWS_WITH(load("cpu", "fp8"), Contains("fp8"));
  CHECK(load("cpu", "bf16")->dtype() == "bfloat16");
  CHECK(load("cpu", "fp16")->dtype() == "float16");
  CHECK_THROWS_AS(Model::load("/nonexistent/model.pt"), ArchiveError);
}

TEST_CASE("p = 0 answers as redistribution off, bit for bit", "[session][var]") {
  Request off = cat_question();
  off.return_logits = true;
  off.var.enabled = false;
  Request zero = off;
  zero.var.enabled = true;
  zero.var.p = 0.0f;
  zero.var.rho = 0.0f;
  const Answer a = ask(off), b = ask(zero);
  CHECK(at::equal(a.logits, b.logits));
  CHECK(a.tokens == b.tokens);
}

TEST_CASE("an answer's text arrives in pieces and ends where the callback says so", "[session]") {
  std::string text;
  const Answer whole = ask(cat_question(), [&](std::string_view piece) {
    CHECK(!piece.empty());
    text += piece;
    return true;
  });
  CHECK(text == whole.text);
  CHECK(whole.tokens.size() == 12);
  CHECK(whole.finish_reason == FinishReason::kLength);
  CHECK(whole.timing.decode_tokens == 11);
  CHECK(whole.timing.vision_ms > 0);
  CHECK(whole.timing.prefill_ms > 0);
  CHECK(whole.timing.tokens_per_second > 0);
  CHECK(whole.timing.peak_memory_bytes > 1 << 20);
  CHECK(!whole.logits.defined());
  int pieces = 0;
  const Answer cancelled = ask(cat_question(), [&](std::string_view) { return ++pieces < 3; });
  CHECK(pieces == 3);
  CHECK(cancelled.finish_reason == FinishReason::kCancelled);
  CHECK(to_string(cancelled.finish_reason) == "cancelled");
  CHECK(cancelled.tokens.size() < whole.tokens.size());
  CHECK(std::equal(cancelled.tokens.begin(), cancelled.tokens.end(), whole.tokens.begin()));
}

TEST_CASE("a stop token ends the answer and keeps its row of logits", "[session]") {
  const std::vector<std::int64_t> tokens = ask(cat_question()).tokens;
  const std::shared_ptr<const Model> model = changed_model(
      "generation_config.json",
      [&](nlohmann::json& config) {
        config["eos_token_id"] = {2, tokens[4]};
      },
      [] {
        ConvertOptions options;
        options.sink_dims = golden_case("mha").at("sink_dims").get<std::vector<std::int64_t>>();
        return options;
      }());
  Request request = cat_question();
  request.return_logits = true;
  const Answer answer = Session(model).ask(request);
  CHECK(answer.finish_reason == FinishReason::kStop);
  CHECK(answer.tokens == std::vector<std::int64_t>(tokens.begin(), tokens.begin() + 4));
  CHECK(answer.logits.sizes() == at::IntArrayRef({5, 520}));
  CHECK(answer.logits.scalar_type() == at::kFloat);
  CHECK(answer.logits[4].argmax().item<std::int64_t>() == tokens[4]);
}

TEST_CASE("sampled answers depend on the seed alone", "[session]") {
  Request request = cat_question();
  request.generation.temperature = 1.0;
  request.generation.top_p = 0.9;
  request.generation.seed = 11;
  const Answer first = ask(request), second = ask(request);
  CHECK(first.tokens == second.tokens);
  CHECK(first.tokens != ask(cat_question()).tokens);
  request.generation.seed = 12;
  CHECK(first.tokens != ask(request).tokens);
}

TEST_CASE("a session starts afresh with every ask", "[session]") {
  Session session(mha());
  Request longer = cat_question(40);
  longer.images.push_back(golden_folder() / "images/portrait.png");
  const Answer fresh = ask(cat_question());
  session.ask(longer);
  CHECK(session.ask(cat_question()).tokens == fresh.tokens);
  CHECK_THROWS_AS(session.ask([] {
    Request request = cat_question();
    request.images = {golden_folder() / "nothing.png"};
    return request;
  }()),
                  InputError);
  CHECK(session.ask(cat_question()).tokens == fresh.tokens);
}

TEST_CASE("a follow-up continues the conversation in its caches", "[session][var]") {
  const auto follow = [](bool second_var) {
    Session session(mha());
    Answer first = session.ask(cat_question(6));
    Request second;
    second.question = "And the blue one?";
    second.generation.max_new_tokens = 6;
    second.var.enabled = second_var;
    second.return_logits = true;
    return std::make_pair(std::move(first), session.follow_up(second));
  };
  const auto [first, second] = follow(true);
  CHECK(second.prompt_tokens.front() != 1);  // the conversation has its BOS
  CHECK(second.visual_spans == first.visual_spans);
  CHECK(second.var.visual_sinks == first.var.visual_sinks);
  CHECK(!at::equal(second.logits, follow(false).second.logits));

  // All of it as one prompt.
  const c10::InferenceMode inference;
  const LoadedModel& model = mha()->loaded();
  Sequence whole;
  whole.ids = first.prompt_tokens;
  whole.ids.insert(whole.ids.end(), first.tokens.begin(), first.tokens.end());
  whole.ids.insert(whole.ids.end(), second.prompt_tokens.begin(), second.prompt_tokens.end());
  whole.visual_spans = first.visual_spans;
  const ProcessedImage image =
      process_image(read_image(golden_folder() / "images/landscape.png"), model.config.image);
  Conversation conversation(model.decoder, 0);
  const at::Tensor logits =
      conversation.prefill(whole, model.encode_images({image}), second.var.params, 1);
  const double error =
      ((logits - second.logits[0]).abs().max() / logits.abs().max()).item<double>();
  CAPTURE(error);
  CHECK(error <= 1e-5);
}

TEST_CASE("the token that ended an answer by length is a generated one in the follow-up",
          "[session][var]") {
  // Every token would be a sink at tau = 0; generated_sinks = false keeps the generated ones out.
  Request request = cat_question(4);
  request.var.tau = 0.0f;
  request.var.generated_sinks = false;
  Request second = request;
  second.images.clear();
  second.question = "And the blue one?";
  Session session(mha());
  const Answer first = session.ask(request);
  const std::int64_t answered = session.length();
  CHECK(answered == static_cast<std::int64_t>(first.prompt_tokens.size()) + 3);
  const Answer follow = session.follow_up(second);
  CHECK(session.length() ==
        answered + 1 + static_cast<std::int64_t>(follow.prompt_tokens.size()) + 3);

  // The same by hand: the fourth token as a decode step.
  const c10::InferenceMode inference;
  const LoadedModel& model = mha()->loaded();
  VarParams var = request.var;
  var.first_layer = 2;
  Sequence prompt;
  prompt.ids = first.prompt_tokens;
  prompt.visual_spans = first.visual_spans;
  const ProcessedImage image =
      process_image(read_image(golden_folder() / "images/landscape.png"), model.config.image);
  Conversation conversation(model.decoder, 0);
  conversation.prefill(prompt, model.encode_images({image}), var, 4);
  for (const std::int64_t token : first.tokens) conversation.step(token, var);
  Sequence more;
  more.ids = follow.prompt_tokens;
  const at::Tensor logits = conversation.prefill(more, {}, var, 1);
  CHECK(logits.argmax().item<std::int64_t>() == follow.tokens.front());
  CHECK_THROWS_AS(
      session.follow_up(second, [](std::string_view) -> bool { throw std::runtime_error("stop"); }),
      std::runtime_error);
  CHECK(session.length() == 0);  // half a turn is no conversation
}

TEST_CASE("pixels in memory answer as the file they were read from", "[session]") {
  const at::Tensor pixels = read_image(golden_folder() / "images/landscape.png").contiguous();
  Request request = cat_question();
  request.images = {rgb_image(pixels)};
  CHECK(ask(request).tokens == ask(cat_question()).tokens);
}

TEST_CASE("a request says which Pillow its resizes equal", "[session]") {
  // To 70 x 175: 25 rows are lost and 10 columns. A picture of that size stays as it is.
  const at::Tensor picture =
      at::arange(200 * 80 * 3).square().remainder(251).to(at::kByte).view({200, 80, 3});
  const auto logits = [](const at::Tensor& pixels, const std::string& order) {
    Request request = cat_question(1);
    request.images = {rgb_image(pixels)};
    request.resize_order = order;
    request.return_logits = true;
    return ask(request).logits;
  };
  const at::Tensor pillow12 = logits(picture, "pillow12"), pillow13 = logits(picture, "pillow13");
  CHECK(!at::equal(pillow12, pillow13));
  const auto resized = [&](ResizePassOrder order) {
    return logits(resize_bicubic(picture, 175, 70, order), "pillow12");
  };
  CHECK(at::equal(pillow12, resized(ResizePassOrder::kHorizontalFirst)));
  CHECK(at::equal(pillow13, resized(ResizePassOrder::kPillow13)));
}

TEST_CASE("a request that can't be answered is refused in one line", "[session]") {
  const auto message = [](const std::function<void(Request&)>& change) {
    Request request = cat_question();
    change(request);
    std::string text;
    try {
      ask(request);
    } catch (const Error& error) {
      text = error.what();
    }
    CHECK(text.find('\n') == std::string::npos);
    return text;
  };
  CHECK_THAT(message([](Request& r) {
               for (int i = 0; i < 600; ++i) r.question += " cat";
             }),
             Contains("context") && Contains("512"));
  CHECK_THAT(message([](Request& r) { r.question = "<image> and <image>"; }), Contains("<image>"));
  CHECK_THAT(message([](Request& r) { r.raw_prompt = "no place"; }),
             Contains("0 <image> places") && Contains("1 images"));
  CHECK_THAT(message([](Request& r) { r.image_mode = "stretch"; }), Contains("stretch"));
  CHECK_THAT(message([](Request& r) { r.resize_order = "opencv"; }),
             Contains("pillow12 or pillow13") && Contains("opencv"));
  CHECK_THAT(message([](Request& r) { r.prompt_style = "gpt"; }), Contains("gpt"));
  CHECK_THAT(message([](Request& r) { r.var.tau = NAN; }), Contains("tau"));
  CHECK_THAT(message([](Request& r) { r.var.p = 2.0f; }), Contains("p must"));
  CHECK_THAT(message([](Request& r) { r.var.first_layer = 5; }),
             Contains("first_layer") && Contains("5 layers"));
  CHECK_THAT(message([](Request& r) { r.generation.max_new_tokens = 0; }),
             Contains("max_new_tokens"));
  CHECK_THROWS_AS(Session(nullptr), ConfigError);
  SessionOptions options;
  options.prefill_chunk = -1;
  CHECK_THROWS_AS(Session(mha(), options), ConfigError);
}

TEST_CASE("the answer ends with the context", "[session]") {
  Request request = cat_question(1000);
  const Answer answer = ask(request);
  CHECK(answer.finish_reason == FinishReason::kLength);
  CHECK(answer.tokens.size() + answer.prompt_tokens.size() == 512);
}

TEST_CASE("without sink dimensions redistribution is off by default and refused on request",
          "[session][var]") {
  const std::shared_ptr<const Model> model = changed_model("config.json", [](nlohmann::json&) {});
  CHECK(!model->has_sink_dimensions());
  CHECK(!model->var_defaults().enabled);
  Session session(model);
  Request request = cat_question(3);
  CHECK_THROWS_WITH(session.ask(request), Contains("sink dimensions"));
  request.var = model->var_defaults();
  CHECK(session.ask(request).tokens.size() == 3);
}

TEST_CASE("sessions of one model run in threads of their own", "[session]") {
  const std::vector<std::int64_t> expected = ask(cat_question()).tokens;
  std::vector<std::vector<std::int64_t>> found(2);
  std::vector<std::thread> threads;
  for (auto& tokens : found)
    threads.emplace_back([&tokens] { tokens = ask(cat_question()).tokens; });
  for (std::thread& thread : threads) thread.join();
  CHECK(found[0] == expected);
  CHECK(found[1] == expected);
}
