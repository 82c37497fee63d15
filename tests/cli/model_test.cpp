// The command with a model: the goldens' tiny LLaVA.

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>
#include <caffe2/serialize/inline_container.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <algorithm>
#include <csignal>
#include <nlohmann/json.hpp>

#include "catch.h"
#include "command.h"
#include "convert/safetensors.h"
#include "golden_fixture.h"
#include "libvar/convert.h"
#include "temporary_folder.h"
#include "unit/storage/tiny_checkpoint.h"

using namespace libvar::testing;
using Catch::Contains;
using Catch::StartsWith;
using nlohmann::json;

namespace {

using Arguments = std::vector<std::string>;

std::string model_path() {
  return golden_archive("mha").string();
}

std::string image_path(const std::string& name) {
  return (golden_folder() / "images" / name).string();
}

const json& golden_run(const std::string& name) {
  for (const json& run : golden_case("mha").at("runs")) {
    if (run.at("name") == name) return run;
  }
  throw std::runtime_error("no golden run " + name);
}

/// `var ask` of a golden run in float32 on the CPU, with as many tokens as the run has unless the
/// flags say so.
Arguments ask(const json& run, const Arguments& flags = {}) {
  Arguments arguments = {"ask",     model_path(), run.at("question"), "--device", "cpu",
                         "--dtype", "fp32"};
  if (std::find(flags.begin(), flags.end(), "--max-new-tokens") == flags.end()) {
    arguments.insert(arguments.end(),
                     {"--max-new-tokens", std::to_string(run.at("max_new_tokens").get<int>())});
  }
  for (const std::string image : run.at("images")) {
    arguments.insert(arguments.end(), {"--image", (golden_folder() / image).string()});
  }
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  return arguments;
}

CommandResult succeed(const Arguments& arguments, const CommandOptions& options = {}) {
  CommandResult result = run_command(arguments, options);
  INFO("stderr: " << result.err);
  CHECK(result.code == 0);
  return result;
}

void check_error(const CommandResult& result, const std::string& text) {
  INFO("stdout: " << result.out << "\nstderr: " << result.err);
  CHECK(result.code == 1);
  CHECK(result.out.empty());
  CHECK_THAT(result.err, StartsWith("var: error: ") && Contains(text));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}

void check_answer(const json& answer, const json& run) {
  for (const char* key : {"tokens", "prompt_tokens", "visual_spans"}) {
    INFO(key);
    CHECK(answer.at(key) == run.at(key));
  }
  CHECK(answer.at("answer") == run.at("text"));
  CHECK(answer.at("finish_reason") == "length");
}

std::size_t entries(const TemporaryFolder& folder) {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator(folder.path()), {}));
}

}  // namespace

TEST_CASE("ask refuses what --memory does not suffice for", "[cli]") {
  const json& run = golden_run("off");
  check_error(run_command(ask(run, {"--memory", "100kB"})), "but only 100.0 kB are available");
  const CommandResult usage = run_command(ask(run, {"--memory", "much"}));
  CHECK(usage.code == 2);
  CHECK_THAT(usage.err, Contains("--memory"));
  CHECK(succeed(ask(run, {"--memory", "1GB", "--no-var"})).out ==
        succeed(ask(run, {"--no-var"})).out);
}

TEST_CASE("ask --json gives the golden answers", "[cli][golden]") {
  const auto [name, flags] =
      GENERATE(std::pair("off", Arguments{"--no-var"}), std::pair("on", Arguments{}),
               std::pair("two_images", Arguments{}),
               std::pair("reference", Arguments{"--preset", "reference"}));
  INFO(name);
  const json& run = golden_run(name);
  Arguments arguments = ask(run, flags);
  arguments.push_back("--json");
  const json answer = json::parse(succeed(arguments).out);
  check_answer(answer, run);
  const json& var = answer.at("var");
  CHECK(var.at("enabled") == run.at("var").at("enabled"));
  if (var.at("enabled") == true) {
    CHECK(var.at("selected_rows") == run.at("selected_rows"));
    CHECK(var.at("visual_sinks") == run.at("visual_sinks"));
    for (const char* key : {"rho", "p", "min_visual_mass", "first_layer"})
      CHECK(var.at(key) == run.at("var").at(key));
  }
  for (const char* key : {"load_ms", "vision_ms", "prefill_ms", "decode_ms", "decode_tokens",
                          "tokens_per_second", "peak_memory_bytes"}) {
    CHECK(answer.at("timing").at(key).is_number());
  }
}

TEST_CASE("ask prints the text and nothing else", "[cli][golden]") {
  const json& run = golden_run("on");
  const CommandResult result = succeed(ask(run));
  CHECK(result.out == run.at("text").get<std::string>() + "\n");
  CHECK(result.err.empty());
  CHECK_THAT(succeed(ask(run, {"--log-level", "info", "--max-new-tokens", "2"})).err,
             Contains("tokens/s"));
}

TEST_CASE("VAR flags change the preset, and numbers come back as they were written", "[cli]") {
  const json answer = json::parse(
      succeed(ask(golden_run("on"),
                  {"--json", "--max-new-tokens", "1", "--preset", "hallucination", "--tau", "inf",
                   "--p", "0.3", "--first-layer", "1", "--min-visual-mass", "0.05"}))
          .out);
  const json& var = answer.at("var");
  CHECK(var.at("tau") == "inf");
  CHECK(var.at("rho") == 0.5);
  CHECK(var.at("p") == 0.3);
  CHECK(var.at("first_layer") == 1);
  CHECK(var.at("min_visual_mass") == 0.05);
  CHECK(answer.at("tokens").size() == 1);
}

TEST_CASE("--raw-prompt is the whole prompt", "[cli][golden]") {
  const json& run = golden_run("on");
  Arguments arguments = ask(run, {"--json", "--raw-prompt", run.at("prompt")});
  arguments[2] = "";
  check_answer(json::parse(succeed(arguments).out), run);

  Arguments without_question =
      ask(run, {"--json", "--raw-prompt", run.at("prompt"), "--max-new-tokens", "1"});
  without_question.erase(without_question.begin() + 2);
  CHECK(json::parse(succeed(without_question).out).at("prompt_tokens") == run.at("prompt_tokens"));
}

TEST_CASE("--compare gives both answers and where they part", "[cli][golden]") {
  const json& run = golden_run("on");
  const Arguments strong = {
      "--rho", "0", "--p", "1", "--min-visual-mass", "0", "--max-new-tokens", "16", "--compare"};
  Arguments flags = strong;
  flags.push_back("--json");
  const json both = json::parse(succeed(ask(run, flags)).out);
  CHECK(both.at("with_var").at("var").at("enabled") == true);
  CHECK(both.at("without_var").at("var").at("enabled") == false);
  const json &with = both.at("with_var").at("tokens"),
             &without = both.at("without_var").at("tokens");
  REQUIRE(with != without);
  const std::size_t index = both.at("first_difference");
  for (std::size_t i = 0; i < index; ++i) CHECK(with.at(i) == without.at(i));
  CHECK(with.at(index) != without.at(index));

  const std::string text = succeed(ask(run, strong)).out;
  CHECK_THAT(
      text,
      Contains("with VAR:    " + both.at("with_var").at("answer").get<std::string>() + "\n") &&
          Contains("without VAR: " + both.at("without_var").at("answer").get<std::string>() +
                   "\n") &&
          Contains("They part at token " + std::to_string(index) + ": " + with.at(index).dump() +
                   " with VAR, " + without.at(index).dump() + " without.\n"));
  const json same = json::parse(
      succeed(ask(run, {"--compare", "--json", "--p", "0", "--max-new-tokens", "4"})).out);
  CHECK(same.at("first_difference").is_null());
}

TEST_CASE("--logits writes what torch.load reads", "[cli][golden]") {
  const TemporaryFolder folder;
  const json& run = golden_run("on");
  const std::string file = (folder / "logits.pt").string();
  succeed(ask(run, {"--logits", file}));
  CHECK(entries(folder) == 1);
  const std::string bytes = read_bytes(file);
  const at::Tensor logits = torch::jit::pickle_load({bytes.begin(), bytes.end()}).toTensor();
  const at::Tensor golden =
      libvar::SafetensorsFile::open(golden_folder() / golden_case("mha").at("file"))
          .tensor(run.at("logits"));
  REQUIRE(logits.scalar_type() == at::kFloat);
  REQUIRE(logits.sizes() == golden.sizes());
  const double error =
      logits.sub(golden).abs().max().item().toDouble() / golden.abs().max().item().toDouble();
  CHECK_FALSE(!(error <= golden_manifest().at("logits_bar").get<double>()));
}

/// A 24-bit BMP file of a picture like noise; rows are a multiple of four bytes long.
std::string noise_bmp(std::uint32_t width, std::uint32_t height) {
  const std::uint32_t pixel_bytes = width * height * 3, head_bytes = 54;
  std::string file = "BM";
  for (const std::uint32_t field : {head_bytes + pixel_bytes, 0u, head_bytes, 40u, width, height,
                                    1u | 24u << 16, 0u, pixel_bytes, 0u, 0u, 0u, 0u}) {
    for (int byte = 0; byte < 4; ++byte) file += static_cast<char>(field >> 8 * byte & 0xff);
  }
  for (std::uint32_t i = 0; i < pixel_bytes; ++i) file += static_cast<char>(i * i % 251);
  return file;
}

TEST_CASE("--resize-order reaches the picture", "[cli]") {
  const TemporaryFolder folder;
  // 25 rows are lost and 10 columns: Pillow 13 has another order here.
  write_bytes(folder / "tall.bmp", noise_bmp(80, 200));
  const auto logits = [&](const Arguments& flags) {
    const std::string file = (folder / "logits.pt").string();
    Arguments arguments = ask(golden_run("text_only"), {"--max-new-tokens", "1"});
    arguments.insert(arguments.end(),
                     {"--image", (folder / "tall.bmp").string(), "--logits", file});
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    succeed(arguments);
    return read_bytes(file);
  };
  const std::string by_default = logits({});
  CHECK(logits({"--resize-order", "pillow12"}) == by_default);
  CHECK(logits({"--resize-order", "pillow13"}) != by_default);
}

TEST_CASE("draws depend on the seed alone", "[cli]") {
  const auto answer = [](Arguments flags) {
    flags.insert(flags.end(), {"--max-new-tokens", "12"});
    return succeed(ask(golden_run("text_only"), flags)).out;
  };
  const std::string greedy = answer({"--seed", "7"});
  CHECK(answer({"--temperature", "0", "--top-p", "0.9"}) == greedy);
  CHECK(answer({"--top-k", "1"}) == greedy);
  const std::string drawn = answer({"--temperature", "1", "--seed", "7"});
  CHECK(drawn != greedy);
  CHECK(answer({"--top-p", "1", "--seed", "7"}) == drawn);
  CHECK(answer({"--temperature", "1", "--seed", "8"}) != drawn);
}

TEST_CASE("Ctrl-C ends the answer and keeps what is there", "[cli]") {
  const json& run = golden_run("on");
  const CommandResult result =
      run_command(ask(run, {"--max-new-tokens", "400"}), {.interrupt_after = 1});
  INFO(result.err);
  CHECK(result.code == 130);
  CHECK(result.err.empty());
  CHECK(result.out.size() > 1);
  CHECK(result.out.back() == '\n');
  CHECK(result.out.size() < 300);  // all 400 tokens would give more
}

TEST_CASE("chat answers line by line and keeps the conversation", "[cli][golden]") {
  const json& run = golden_run("on");
  const std::string question = run.at("question").get<std::string>() + "\n";
  const std::string image = "/image " + (golden_folder() / run.at("images").at(0)).string() + "\n";
  const auto chat = [&](const std::string& input) {
    return succeed({"chat", model_path(), "--device", "cpu", "--dtype", "fp32", "--max-new-tokens",
                    "16", "--rho", "0", "--p", "1", "--min-visual-mass", "0"},
                   {.input = input})
        .out;
  };
  const Arguments strong = {"--rho", "0", "--p", "1", "--min-visual-mass", "0", "--max-new-tokens",
                            "16"};
  const std::string text = succeed(ask(run, strong)).out;
  const std::string off = succeed(ask(run, {"--no-var", "--max-new-tokens", "16"})).out;
  REQUIRE(text != off);
  CHECK(chat(image + question + "/reset\n/var off\n" + image + question + "/quit\n" + question) ==
        text + off);
  const std::string twice = chat(image + question + question);
  CHECK_THAT(twice, StartsWith(text));
  CHECK(
      twice !=
      text +
          text);  // the second question is asked about a conversation, without a picture of its own
}

TEST_CASE("chat names what it can't do and goes on", "[cli]") {
  const CommandResult result =
      run_command({"chat", model_path(), "--max-new-tokens", "2"},
                  {.input = "/image none.png\n/sing\n/var maybe\n/image " +
                            golden_folder().string() + "/decode/text.png\nWhat?\nWhat is red?\n"});
  CHECK(result.code == 1);
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 4);
  CHECK_THAT(result.err,
             Contains("image none.png: no such file") && Contains("unknown command: /sing") &&
                 Contains("unknown command: /var maybe") && Contains("text.png: not a PNG"));
  CHECK(result.out.size() > 1);
  CHECK_THAT(succeed({"chat", model_path()}, {.input = "/help\n"}).err, Contains("/image FILE"));
}

TEST_CASE("pictures that can't be read are one line", "[cli]") {
  const auto [file, text] = GENERATE(std::pair("decode/truncated.jpg", "truncated JPEG"),
                                     std::pair("decode/truncated.png", "truncated PNG"),
                                     std::pair("decode/truncated.webp", "truncated WebP"),
                                     std::pair("decode/text.png", "not a PNG, JPEG"),
                                     std::pair("decode/empty.jpg", "the file is empty"),
                                     std::pair("decode", "is a directory"));
  const TemporaryFolder folder;
  check_error(
      run_command({"ask", model_path(), "What?", "--image", (golden_folder() / file).string(),
                   "--logits", (folder / "logits.pt").string()}),
      text);
  CHECK(entries(folder) == 0);
}

TEST_CASE("prompts that don't fit are one line", "[cli]") {
  std::string question;
  for (int i = 0; i < 600; ++i) question += "the cat ";
  check_error(run_command({"ask", model_path(), question}), "the context is 512 tokens long");
  check_error(
      run_command({"ask", model_path(), "<image> and <image>?", "--image", image_path("tiny.png")}),
      "<image>");
  check_error(run_command({"ask", model_path(), "", "--raw-prompt", "no place", "--image",
                           image_path("tiny.png")}),
              "<image>");
}

TEST_CASE("convert writes an archive that info describes", "[cli]") {
  const TemporaryFolder folder;
  const json& golden = golden_case("mha");
  write_golden_checkpoint(folder / "hf", golden, Layout::kA, 2);
  const std::string archive = (folder / "model.pt").string();
  const CommandResult converted =
      succeed({"convert", (folder / "hf").string(), archive, "--sink-dims", "137,301", "--dtype",
               "bf16", "--first-layer", "1"});
  CHECK_THAT(converted.out, StartsWith(archive + ": llava, ") && Contains("bfloat16"));
  CHECK(converted.err.empty());
  CHECK(entries(folder) == 2);
  const json info = json::parse(succeed({"info", archive, "--json", "--verify"}).out);
  CHECK(info.at("family") == "llava");
  CHECK(info.at("dtype") == "bfloat16");
  CHECK(info.at("sink_dims") == json({137, 301}));
  CHECK(info.at("num_layers") == 5);
  CHECK(info.at("visual_tokens") == 25);
  CHECK(info.at("prompt_style") == "llava_hf");
  CHECK(info.at("var_defaults").at("first_layer") == 1);
  CHECK(info.at("var_defaults").at("rho") == 0.8);
  CHECK(info.at("verified") == true);
  const std::string table = succeed({"info", archive, "--verify"}).out;
  CHECK_THAT(table, Contains("5 layers") && Contains("137, 301") && Contains("all right"));
}

TEST_CASE("convert writes int8 weights that ask uses", "[cli]") {
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "hf", golden_case("mha"));
  const std::string archive = (folder / "model.pt").string();
  const Arguments convert = {"convert", (folder / "hf").string(), archive, "--sink-dims",
                             "137,301"};
  Arguments quantize = convert;
  quantize.insert(quantize.end(), {"--quantize", "int8"});
  CHECK_THAT(succeed(quantize).out, Contains("float32, decoder int8"));
  const json info = json::parse(succeed({"info", archive, "--json", "--verify"}).out);
  CHECK(info.at("dtype") == "float32");
  CHECK(info.at("quantization") == "int8");
  CHECK_THAT(succeed({"info", archive}).out, Contains("float32, decoder int8"));
  Arguments arguments = ask(golden_run("on"), {"--max-new-tokens", "8"});
  arguments[1] = archive;
  CHECK_FALSE(succeed(arguments).out.empty());
  succeed(convert);
  CHECK(json::parse(succeed({"info", archive, "--json"}).out).at("quantization") == "");
  quantize.back() = "int4";
  CHECK(run_command(quantize).code == 2);
}

TEST_CASE("a model without sink dimensions runs without VAR and says so", "[cli]") {
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "hf", golden_case("mha"));
  const std::string archive = (folder / "model.pt").string();
  CHECK_THAT(succeed({"convert", (folder / "hf").string(), archive}).err,
             Contains("give --sink-dims"));
  CHECK_THAT(succeed({"info", archive}).out, Contains("none: VAR can't act"));
  Arguments arguments = ask(golden_run("on"), {"--max-new-tokens", "8"});
  const std::string without =
      succeed(ask(golden_run("on"), {"--max-new-tokens", "8", "--no-var"})).out;
  arguments[1] = archive;
  const CommandResult result = succeed(arguments);
  CHECK(result.out == without);
  CHECK_THAT(result.err, Contains("VAR can't act, so this runs without it"));
  arguments.push_back("--compare");
  check_error(run_command(arguments), "VAR can't act");
  check_error(run_command({"chat", archive, "--no-var"}, {.input = "/var on\n"}), "VAR can't act");
}

TEST_CASE("checkpoints that can't be converted are one line and leave nothing behind", "[cli]") {
  const TemporaryFolder folder;
  const auto hf = folder / "hf";
  const auto rewrite = [&](const char* file, const char* key, const json& value) {
    json content = json::parse(read_bytes(hf / file));
    content[key] = value;
    write_bytes(hf / file, content.dump());
  };
  TinyCheckpoint checkpoint;
  std::string expected;
  SECTION("a missing shard") {
    checkpoint.write(hf, 2);
    std::filesystem::remove(hf / "model-00002-of-00002.safetensors");
    expected = "model-00002-of-00002.safetensors";
  }
  SECTION("a missing tensor") {
    checkpoint.tensors.erase("multi_modal_projector.linear_2.bias");
    checkpoint.write(hf);
    expected = "multi_modal_projector.linear_2.bias";
  }
  SECTION("a wrong shape") {
    auto& bias = checkpoint.tensors.at("multi_modal_projector.linear_2.bias");
    bias = bias.narrow(0, 0, bias.size(0) - 1).contiguous();
    checkpoint.write(hf);
    expected = "multi_modal_projector.linear_2.bias: expected shape";
  }
  SECTION("an unknown model_type") {
    checkpoint.write(hf);
    rewrite("config.json", "model_type", "parrot");
    expected = "parrot";
  }
  SECTION("a tokenizer that does not fit the vocabulary") {
    checkpoint.write(hf);
    rewrite("added_tokens.json", "<one more>", 100000);
    expected = "the tokenizer does not fit";
  }
  SECTION("pickles only") {
    checkpoint.write(hf);
    std::filesystem::remove(hf / "model.safetensors");
    write_bytes(hf / "pytorch_model.bin", "pickle");
    expected = "holds pickled weights only";
  }
  check_error(run_command({"convert", hf.string(), (folder / "model.pt").string()}), expected);
  CHECK(entries(folder) == 1);
}

TEST_CASE("a full disk is one line and leaves nothing behind", "[cli]") {
  const TemporaryFolder folder;
  TinyCheckpoint().write(folder / "hf");
  const Arguments convert = {"convert", (folder / "hf").string(), (folder / "model.pt").string()};
  const CommandResult result = run_command(convert, {.file_size_limit = 20'000});
  check_error(result, "model.pt");
  CHECK(entries(folder) == 1);
  succeed(convert);
  CHECK(entries(folder) == 2);
}

TEST_CASE("a conversion that is told to end leaves nothing behind", "[cli]") {
  const int signal = GENERATE(SIGINT, SIGTERM, SIGHUP);
  const TemporaryFolder folder;
  write_golden_checkpoint(folder / "hf", golden_case("mha"));
  // The signal comes when the partial file appears. A conversion that is quicker is tried again.
  CommandResult result;
  for (int attempt = 0; attempt < 20 && result.code != 128 + signal; ++attempt) {
    std::filesystem::create_directories(folder / "out");
    std::filesystem::remove(folder / "out/model.pt");
    result = run_command({"convert", (folder / "hf").string(), (folder / "out/model.pt").string()},
                         {.signal = signal, .signal_when_file_in = (folder / "out").string()});
  }
  CHECK(result.code == 128 + signal);
  CHECK(result.err == "var: interrupted\n");
  CHECK(std::filesystem::is_empty(folder / "out"));
}

TEST_CASE("archives that are not this library's are one line", "[cli]") {
  const TemporaryFolder folder;
  const std::string file = (folder / "model.pt").string();
  const std::string bytes = read_bytes(model_path());
  const auto write_records = [&](const std::map<std::string, std::string>& records) {
    caffe2::serialize::PyTorchStreamWriter writer(file);
    for (const auto& [name, text] : records) writer.writeRecord(name, text.data(), text.size());
    writer.writeEndOfFile();
  };
  std::string expected = file;
  SECTION("text") {
    write_bytes(file, "hello, world\n");
  }
  SECTION("a picture") {
    std::filesystem::copy_file(image_path("tiny.png"), file);
  }
  SECTION("truncated") {
    write_bytes(file, bytes.substr(0, bytes.size() / 2));
  }
  SECTION("without its end") {
    write_bytes(file, bytes.substr(0, bytes.size() - 10));
  }
  SECTION("with code in it") {
    write_records({{"code/__torch__.py",
                    "class Model(Module):\n  def __setstate__(self, state):\n    pass\n"},
                   {"data.pkl", "x"},
                   {"extra/libvar.json", R"({"format_version": 1})"}});
    expected = "var convert";
  }
  SECTION("a scripted model") {
    write_records(
        {{"code/__torch__.py", "class Net(Module):\n  def forward(self, x):\n    return x\n"},
         {"data.pkl", "x"}});
    expected = "var convert";
  }
  SECTION("of another format version") {
    const std::string key = "\"format_version\"";
    const std::size_t at = bytes.find(key);
    REQUIRE(at != std::string::npos);
    const std::size_t digit = bytes.find_first_of("0123456789", at + key.size());
    std::string changed = bytes;
    changed[digit] = '9';
    write_bytes(file, changed);
    expected = "version 9";
  }
  check_error(run_command({"ask", file, "What?"}), expected);
  check_error(run_command({"info", file, "--verify"}), expected);
}

TEST_CASE("info --verify finds a flipped byte", "[cli]") {
  const TemporaryFolder folder;
  const std::string file = (folder / "model.pt").string();
  std::string bytes = read_bytes(model_path());
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 0x10);  // in the weights
  write_bytes(file, bytes);
  succeed({"info", file});
  check_error(run_command({"info", file, "--verify"}), file);
}

TEST_CASE("sinks discover finds, shows and stores", "[cli]") {
  const std::filesystem::path demo =
      std::filesystem::path(LIBVAR_SOURCE_DIR) / "examples/demo_model";
  const std::string image = (demo / "images/scene_1.png").string();
  const TemporaryFolder folder;
  const std::string file = (folder / "demo.pt").string();
  std::filesystem::copy_file(demo / "demo.pt", file);
  const std::string before = read_bytes(file);
  const Arguments discover = {"sinks",   "discover", file,      "--device", "cpu",
                              "--dtype", "fp32",     "--image", image};
  const auto with = [&](const Arguments& more) {
    Arguments out = discover;
    out.insert(out.end(), more.begin(), more.end());
    return out;
  };
  CHECK_THAT(succeed(discover).out, Contains("137") && Contains("visual tokens with phi >= 20"));
  const json found = json::parse(succeed(with({"--json"})).out);
  CHECK(found.at("sink_dims") == json({137}));
  CHECK(found.at("saved") == false);
  CHECK(found.at("visual_sink_share").size() == 4);
  CHECK(read_bytes(file) == before);

  CommandOptions full;
  full.file_size_limit = 1 << 20;
  check_error(run_command(with({"--save"}), full), "can't be written past");
  CHECK(read_bytes(file) == before);
  CHECK(entries(folder) == 1);

  CHECK_THAT(succeed(with({"--save"})).out, Contains("stored in " + file));
  CHECK(entries(folder) == 1);
  const json info = json::parse(succeed({"info", file, "--json", "--verify"}).out);
  CHECK(info.at("sink_dims") == json({137}));
  CHECK(info.at("sink_dims_source") == found.at("source"));
}

TEST_CASE("sinks discover that finds nothing keeps what is known", "[cli]") {
  const TemporaryFolder folder;
  const std::string file = (folder / "mha.pt").string();
  std::filesystem::copy_file(model_path(), file);
  CHECK_THAT(succeed({"sinks", "discover", file, "--dtype", "fp32"}).out,
             Contains("No sink dimensions found") && Contains("137, 301"));
  const CommandResult result = run_command({"sinks", "discover", file, "--save"});
  CHECK(result.code == 1);
  CHECK_THAT(result.err, Contains("--save: no sink dimensions were found"));
  CHECK(read_bytes(file) == read_bytes(model_path()));
}

TEST_CASE("ask --discover-sinks gives VAR to an archive without sink dimensions", "[cli]") {
  const TemporaryFolder folder;
  const std::filesystem::path checkpoint = folder / "hf";
  write_golden_checkpoint(checkpoint, golden_case("mha"));
  Tensors tensors = golden_weights(golden_case("mha"));
  tensors.at("language_model.model.embed_tokens.weight")[1][29].fill_(1e4F);
  write_weights(checkpoint, tensors);
  const std::string file = (folder / "model.pt").string();
  libvar::convert_checkpoint(checkpoint, file);
  const Arguments ask = {"ask", file,      "What?", "--device",
                         "cpu", "--dtype", "fp32",  "--max-new-tokens",
                         "2",   "--json"};
  const CommandResult without = succeed(ask);
  CHECK(json::parse(without.out).at("var").at("enabled") == false);
  CHECK_THAT(without.err, Contains("var sinks discover " + file + " --save"));
  const std::string before = read_bytes(file);
  Arguments discovering = ask;
  discovering.emplace_back("--discover-sinks");
  const CommandResult with = succeed(discovering);
  CHECK(json::parse(with.out).at("var").at("enabled") == true);
  CHECK(with.err.empty());
  CHECK(read_bytes(file) == before);
}
