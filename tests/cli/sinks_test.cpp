// var sinks show, heads and contribution on the demo model, whose planted sinks are the corners.

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "catch.h"
#include "cli/command.h"
#include "temporary_folder.h"

using namespace libvar::testing;
using nlohmann::json;

namespace {

const std::string kDemo = LIBVAR_SOURCE_DIR "/examples/demo_model/demo.pt";
const std::string kImage = LIBVAR_SOURCE_DIR "/examples/demo_model/images/scene_1.png";
const std::string kQuestion = "Is there a black object in the image?";

std::vector<std::string> command(const std::string& name, const std::vector<std::string>& more) {
  std::vector<std::string> out = {"sinks", name,       kDemo, kQuestion, "--image",
                                  kImage,  "--device", "cpu", "--dtype", "fp32"};
  out.insert(out.end(), more.begin(), more.end());
  return out;
}

json object_of(const std::string& name, const std::vector<std::string>& more = {}) {
  std::vector<std::string> arguments = command(name, more);
  arguments.emplace_back("--json");
  const CommandResult result = run_command(arguments);
  INFO(result.err);
  REQUIRE(result.code == 0);
  return json::parse(result.out);
}

}  // namespace

TEST_CASE("sinks show finds the planted sinks and what VAR moves", "[cli][sinks]") {
  const json found = object_of("show");
  CHECK(found.at("answer") == "no");
  const std::int64_t begin = found.at("visual_spans")[0][0];
  for (const json& layer : found.at("layers")) {
    CAPTURE(layer.dump());
    CHECK(layer.at("visual_sinks") == json({begin, begin + 5, begin + 30, begin + 35}));
    const json& before = layer.at("attention");
    const json& after = layer.at("redistributed");
    for (const json& shares : {before, after}) {
      double sum = 0;
      for (const auto& [name, share] : shares.items()) sum += share.get<double>();
      CHECK(std::abs(sum - 1) < 1e-4);
    }
    const bool acts = layer.at("layer") == 1 || layer.at("layer") == 2;
    CHECK((layer.at("selected_share").get<double>() > 0) == acts);
    CHECK((after.at("visual_others") > before.at("visual_others")) == acts);
  }
  const json off = object_of("show", {"--no-var"});
  CHECK(off.at("layers")[1].at("attention") == off.at("layers")[1].at("redistributed"));
}

TEST_CASE("sinks show writes tables and pictures", "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string out = (folder / "looks").string();
  const CommandResult result =
      run_command(command("show", {"--out", out, "--token", "object", "--layers", "1-2"}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(out))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  REQUIRE(names.size() == 5);
  CHECK(names[0].substr(0, 12) == "attention-0-");
  CHECK(std::vector<std::string>(names.begin() + 1, names.end()) ==
        std::vector<std::string>{"attention.csv", "magnitudes.csv", "sink_scores.csv",
                                 "sinks-0.png"});
  const std::string magnitudes = read_bytes(folder / "looks" / "magnitudes.csv");
  CHECK(magnitudes.find("\n1,visual_sink,4,137,") != std::string::npos);
  CHECK(magnitudes.find("\n1,first,0,137,") != std::string::npos);
}

TEST_CASE("sinks heads and contribution tell what looks at the image and what sinks carry",
          "[cli][sinks]") {
  const json heads = object_of("heads");
  REQUIRE(heads.at("heads").size() == 32);
  const auto centric =
      std::count_if(heads.at("heads").begin(), heads.at("heads").end(), [](const json& head) {
        return head.at("layer") == 1 && head.at("image_centric_share") > 0.5;
      });
  CHECK(centric > 0);
  CHECK(centric < 8);
  const json contribution = object_of("contribution");
  for (const int layer : {1, 2}) {
    const json& one = contribution.at("layers").at(layer);
    CAPTURE(one.dump());
    CHECK(one.at("sinks") == 4);
    // The paper's Figure 3c: much attention, little contribution.
    CHECK(one.at("sink_attention") > 5 * one.at("other_attention").get<double>());
    CHECK(one.at("sink_contribution") < 0.5 * one.at("other_contribution").get<double>());
  }
}

TEST_CASE("sinks show, heads and contribution refuse what they can't do", "[cli][sinks]") {
  const auto check = [](const CommandResult& result, const std::string& words) {
    INFO(result.err);
    CHECK(result.code != 0);
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(result.err.find(words) != std::string::npos);
  };
  check(run_command(command("show", {"--layers", "4"})), "layers of 0 to 3, found 4");
  check(run_command(command("heads", {"--layers", "2-1"})), "found 2-1");
  check(run_command(command("show", {"--token", "zebra"})), "--token: no token");
  check(run_command(command("contribution", {"--out", kImage + "/x"})), "--out " + kImage + "/x");
  check(run_command({"sinks", "show", kDemo, kQuestion}), "--image: expected at least one picture");
}

TEST_CASE("sinks knockout answers a question file, goes on where it was, and keeps its settings",
          "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string demo = LIBVAR_SOURCE_DIR "/examples/demo_model";
  const std::string out = (folder / "k.jsonl").string();
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {
        "sinks",    "knockout",       kDemo,   "--questions", demo + "/questions.jsonl",
        "--images", demo + "/images", "--out", out,           "--device",
        "cpu",      "--dtype",        "fp32",  "--repeats",   "2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
  };
  const CommandResult first = run({"--limit", "2", "--json"});
  INFO(first.err);
  REQUIRE(first.code == 0);
  const json summary = json::parse(first.out);
  CHECK(summary.at("questions") == 2);
  CHECK(summary.at("none").at("accuracy") == 1.0);
  CHECK(summary.at("random").at("repeats") == 2);
  const std::string two = read_bytes(out);
  REQUIRE(std::count(two.begin(), two.end(), '\n') == 3);
  const json line = json::parse(
      two.substr(two.find('\n') + 1, two.find('\n', two.find('\n') + 1) - two.find('\n') - 1));
  CHECK(line.at("none").at("removed") == json({0, 0, 0, 0}));
  CHECK(line.at("sinks").at("removed") == json({4, 4, 4, 4}));
  CHECK(line.at("random")[0].at("removed") == json({4, 4, 4, 4}));
  CHECK(line.at("random")[0].at("label_log_prob") != line.at("random")[1].at("label_log_prob"));
  CHECK(line.at("none").at("label_log_prob").get<double>() > -0.5);

  // A line that was cut off is answered again; those before it stay as they are.
  write_bytes(out, two.substr(0, two.size() - 20));
  REQUIRE(run({"--limit", "3"}).code == 0);
  const std::string three = read_bytes(out);
  CHECK(three.substr(0, two.size()) == two);
  CHECK(std::count(three.begin(), three.end(), '\n') == 4);

  const CommandResult other = run({"--limit", "3", "--keep-mass"});
  CHECK(other.code == 1);
  CHECK(other.err.find("was made with other settings") != std::string::npos);
  CHECK(read_bytes(out) == three);
}
