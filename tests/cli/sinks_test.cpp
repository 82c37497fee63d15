// var sinks show, heads and contribution on the demo model, whose planted sinks are the corners.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/command.h"
#include "image/image.h"
#include "temporary_folder.h"

#include "catch.h"  // last: c10 has a CHECK of its own

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

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// Pixels of a picture [H, W, 3] that have a colour.
std::int64_t count_colour(const at::Tensor& picture, const std::vector<std::int64_t>& colour) {
  return (picture == at::tensor(colour)).all(-1).sum().item<std::int64_t>();
}

// The first and the second curve of a chart.
const std::vector<std::int64_t> kBlue{0, 114, 178}, kVermillion{213, 94, 0};

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
  const std::vector<std::string> names = names_in(out);
  REQUIRE(names.size() == 6);
  CHECK(names[0].substr(0, 12) == "attention-0-");
  CHECK(std::vector<std::string>(names.begin() + 1, names.end()) ==
        std::vector<std::string>{"attention.csv", "magnitudes-1.png", "magnitudes.csv",
                                 "sink_scores.csv", "sinks-0.png"});
  const std::string magnitudes = read_bytes(folder / "looks" / "magnitudes.csv");
  CHECK(magnitudes.find("\n1,visual_sink,4,137,") != std::string::npos);
  CHECK(magnitudes.find("\n1,first,0,137,") != std::string::npos);
  const at::Tensor chart = libvar::read_image(folder / "looks" / "magnitudes-1.png");
  for (const at::Tensor& third : chart.chunk(3))  // a curve for each of three tokens
    CHECK(count_colour(third, kBlue) > 100);
}

TEST_CASE("sinks show draws single heads, before and after VAR", "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string out = (folder / "looks").string();
  const CommandResult result = run_command(command(
      "show", {"--out", out, "--token", "object", "--layers", "0-1", "--heads", "7,0,4,1,2,7"}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  std::vector<std::string> names = names_in(out);
  std::erase_if(names, [](const std::string& name) { return name.substr(0, 6) != "heads-"; });
  REQUIRE(names.size() == 2);  // one token, two layers
  // A cell is the map before and the one after, each 240 pixels across; five cells in two lines.
  constexpr std::int64_t kMap = 240, kGap = 12, kCaption = 26;
  int changed = 0;
  for (const std::string& name : names) {
    CAPTURE(name);
    const at::Tensor picture = libvar::read_image(folder / "looks" / name);
    CHECK(picture.size(1) == 4 * (2 * kMap + kGap) + 3 * kGap);
    const std::int64_t line = (picture.size(0) + kGap) / 2;
    for (int i = 0; i < 5; ++i) {
      const std::int64_t left = i % 4 * 2 * (kMap + kGap), top = i / 4 * line + kCaption;
      const at::Tensor maps = picture.narrow(0, top, kMap);
      const bool same = maps.narrow(1, left, kMap).equal(maps.narrow(1, left + kMap + kGap, kMap));
      const bool acts = name.substr(name.size() - 6) == "-1.png";
      if (!acts) CHECK(same);
      changed += same ? 0 : 1;
    }
  }
  CHECK(changed == 1);  // head 4 of layer 1, the only one of them that is image-centric
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

TEST_CASE("sinks contribution draws sinks and other visual tokens over the layers",
          "[cli][sinks]") {
  const TemporaryFolder folder;
  const CommandResult result =
      run_command(command("contribution", {"--out", (folder / "c").string()}));
  INFO(result.err);
  REQUIRE(result.code == 0);
  CHECK(names_in(folder / "c") == std::vector<std::string>{"contribution-0.png",
                                                           "contribution-layers.png",
                                                           "contribution.csv"});
  const std::vector<at::Tensor> charts =
      libvar::read_image(folder / "c" / "contribution-layers.png").chunk(2, 1);
  for (const at::Tensor& chart : charts) {
    CHECK(count_colour(chart, kBlue) > 100);
    CHECK(count_colour(chart, kVermillion) > 100);
  }
  // In layers 1 and 2 a sink gets the more attention and contributes less: the mean height of the
  // curves, rows being counted from the top.
  const auto mean_row = [](const at::Tensor& chart, const std::vector<std::int64_t>& colour) {
    return (chart == at::tensor(colour)).all(-1).nonzero().select(1, 0).to(at::kFloat).mean();
  };
  CHECK((mean_row(charts[0], kBlue) > mean_row(charts[0], kVermillion)).item<bool>());
  CHECK((mean_row(charts[1], kBlue) < mean_row(charts[1], kVermillion)).item<bool>());
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
  for (const std::string heads : {"8", "-1", "0,", "1;2", "some", ""})
    check(run_command(command("show", {"--heads", heads})),
          "heads of 0 to 7 as H,H, found " + heads);
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

TEST_CASE("sinks ablate tries one change at a time", "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string demo = LIBVAR_SOURCE_DIR "/examples/demo_model";
  const CommandResult result = run_command({"sinks",
                                            "ablate",
                                            kDemo,
                                            "--questions",
                                            demo + "/questions.jsonl",
                                            "--images",
                                            demo + "/images",
                                            "--out",
                                            (folder / "a.jsonl").string(),
                                            "--device",
                                            "cpu",
                                            "--dtype",
                                            "fp32",
                                            "--limit",
                                            "4",
                                            "--p-values",
                                            "0,1",
                                            "--tau-values",
                                            "20,23",
                                            "--rho-values",
                                            "0.5",
                                            "--first-layer-values",
                                            "1,2",
                                            "--plot",
                                            (folder / "a.png").string(),
                                            "--json"});
  INFO(result.err);
  REQUIRE(result.code == 0);
  const json summary = json::parse(result.out);
  CHECK(summary.at("questions") == 4);
  const at::Tensor plot = libvar::read_image(folder / "a.png");
  constexpr std::int64_t kCharts = 2 * 320 + 12;  // pixels: two lines of two below the bars
  for (const at::Tensor& line : plot.slice(0, plot.size(0) - kCharts).chunk(2)) {
    for (const at::Tensor& chart : line.chunk(2, 1)) {
      CHECK(count_colour(chart, kBlue) > 50);
      CHECK(count_colour(chart, kVermillion) > 50);
    }
  }
  const auto row = [&](const std::string& group, const std::string& name) {
    for (const json& one : summary.at("settings")) {
      if (one.at("group") == group && one.at("setting") == name) return one;
    }
    throw std::runtime_error(group + " " + name);
  };
  CHECK(summary.at("settings").size() == 14);
  const double on = row("VAR", "on").at("selected_share");
  CHECK(row("VAR", "off").at("selected_share") == 0.0);
  CHECK(on > 0.1);
  CHECK(row("tau", "20").at("selected_share") == on);
  CHECK(row("tau", "23").at("selected_share") == 0.0);           // above every phi: no sinks
  CHECK(row("heads", "all heads").at("selected_share") > 0.95);  // less those without target mass
  CHECK(row("rho", "0.5").at("selected_share") >= on);
  CHECK(row("p", "0").at("answers_changed") == 0.0);
  CHECK(row("first_layer", "1").at("selected_share") == on);
}

namespace {

/// COCO's text of run lengths.
std::string coco_text(const std::vector<std::int64_t>& counts) {
  std::string out;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    std::int64_t value = i > 2 ? counts[i] - counts[i - 2] : counts[i];
    for (bool more = true; more;) {
      std::int64_t bits = value & 0x1f;
      value >>= 5;
      more = (bits & 0x10) != 0 ? value != -1 : value != 0;
      out += static_cast<char>((more ? bits | 0x20 : bits) + 48);
    }
  }
  return out;
}

/// A 24-bit BMP of 192 x 192 pixels, whatever its name: an object in the left half, void in the
/// rows below `unknown_from`.
std::string left_half_mask(int unknown_from) {
  const int side = 192;
  std::string bytes = "BM";
  const auto append = [&](std::uint32_t value, int size) {
    for (int i = 0; i < size; ++i) bytes += static_cast<char>(value >> (8 * i));
  };
  append(54 + 3 * side * side, 4);
  for (const std::uint32_t value : {0U, 54U, 40U, 192U, 192U}) append(value, 4);
  append(1, 2);
  append(24, 2);
  bytes.resize(54, '\0');
  for (int row = side - 1; row >= 0; --row) {  // from the bottom
    for (int column = 0; column < side; ++column) {
      const std::uint32_t level = row >= unknown_from ? 0xE0E0C0U
                                  : column < side / 2 ? 0x800000U
                                                      : 0U;
      append(level, 3);
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("sinks background counts tokens by the masks", "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string demo = LIBVAR_SOURCE_DIR "/examples/demo_model/images";
  std::filesystem::create_directories(folder / "images");
  std::filesystem::copy_file(demo + "/scene_1.png", folder / "images" / "scene_1.png");
  int number = 0;
  const auto run = [&](const std::vector<std::string>& masks) {
    std::vector<std::string> arguments = {
        "sinks",
        "background",
        kDemo,
        "--images",
        (folder / "images").string(),
        "--out",
        (folder / std::string("b").append(std::to_string(number++)).append(".jsonl")).string(),
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--json"};
    arguments.insert(arguments.end(), masks.begin(), masks.end());
    return run_command(arguments);
  };
  const auto check_half = [&](const CommandResult& result) {
    INFO(result.err);
    REQUIRE(result.code == 0);
    const json found = json::parse(result.out);
    CHECK(found.at("pictures") == 1);
    CHECK(found.at("chance") == 0.5);
    CHECK(found.at("layers")[1].at("sinks") == 4.0);
    CHECK(found.at("layers")[1].at("background_share") == 0.5);
    return found;
  };
  const auto coco = [&](const json& segmentation) {
    const json content = {
        {"images", {{{"id", 7}, {"file_name", "scene_1.png"}, {"width", 192}, {"height", 192}}}},
        {"annotations",
         {{{"id", 1}, {"image_id", 7}, {"iscrowd", 0}, {"segmentation", segmentation}},
          {{"id", 2}, {"image_id", 8}, {"segmentation", {{1, 2, 3}}}}}}};
    write_bytes(folder / "coco.json", content.dump());
    return run({"--coco", (folder / "coco.json").string()});
  };
  const std::int64_t half = 192 * 96;
  check_half(coco({{0, 0, 95, 0, 95, 191, 0, 191}}));
  check_half(coco({{"size", {192, 192}}, {"counts", {0, half, half}}}));
  // The same in pieces, as text.
  check_half(coco({{"size", {192, 192}}, {"counts", coco_text({0, 500, 0, half - 500, half})}}));
  CHECK_FALSE(coco({{"size", {192, 192}}, {"counts", {0, half}}}).code == 0);
  const CommandResult wrong = coco({{"size", {96, 192}}, {"counts", {0, half, half}}});
  CHECK(wrong.err.find("annotation 1: segmentation: expected the picture's 192 x 192") !=
        std::string::npos);

  std::filesystem::create_directories(folder / "masks");
  write_bytes(folder / "masks" / "scene_1.png", left_half_mask(192));
  CHECK(check_half(run({"--voc", (folder / "masks").string()})).at("visual_tokens") == 36.0);
  write_bytes(folder / "masks" / "scene_1.png", left_half_mask(160));  // the last row is void
  const json less = json::parse(run({"--voc", (folder / "masks").string()}).out);
  CHECK(less.at("visual_tokens") == 30.0);
  CHECK(less.at("layers")[1].at("sinks") == 2.0);
  CHECK(run({"--voc", (folder / "images" / "none").string()}).code == 1);
  CHECK(run({}).code == 2);
}

TEST_CASE("sinks report writes one page, and goes on with the entries it has", "[cli][sinks]") {
  const TemporaryFolder folder;
  const std::string demo = LIBVAR_SOURCE_DIR "/examples/demo_model";
  const std::string page = (folder / "page.html").string(), entries = page + ".entries.jsonl";
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"sinks",    "report", kDemo,     "--out", page,
                                          "--device", "cpu",    "--dtype", "fp32"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_command(arguments);
  };
  std::filesystem::create_directories(folder / "images");
  for (const char* name : {"scene_1.png", "scene_2.png"})
    std::filesystem::copy_file(demo + "/images/" + name, folder / "images" / name);
  const std::string images = (folder / "images").string();
  const CommandResult both = run({kQuestion, "--images", images});
  INFO(both.err);
  REQUIRE(both.code == 0);
  CHECK(both.out.find(page + ": 2 questions") == 0);
  const std::string whole = read_bytes(page);
  CHECK_FALSE(std::filesystem::exists(entries));

  // A picture that can't be read stops it; what was made before stays, and no page is left.
  std::filesystem::remove(page);
  write_bytes(folder / "images" / "scene_2.png", "no picture");
  const CommandResult failed = run({kQuestion, "--images", images});
  CHECK(failed.code == 1);
  CHECK(failed.err.find("scene_2.png") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(page));
  const std::string begun = read_bytes(entries);
  CHECK(std::count(begun.begin(), begun.end(), '\n') == 2);  // settings and the first entry
  CHECK(run({kQuestion, "--images", images, "--p", "0.5"}).err.find("made with other settings") !=
        std::string::npos);
  std::filesystem::copy_file(demo + "/images/scene_2.png", folder / "images" / "scene_2.png",
                             std::filesystem::copy_options::overwrite_existing);
  REQUIRE(run({kQuestion, "--images", images}).code == 0);
  CHECK(read_bytes(page) == whole);
  std::vector<std::string> left;
  for (const auto& entry : std::filesystem::directory_iterator(folder / "."))
    left.push_back(entry.path().filename().string());
  CHECK(left.size() == 2);  // images, page.html

  CHECK(run({kQuestion, "--image", kImage, "--layers", "1-2"}).code == 0);
  CHECK(run({kQuestion, "--image", kImage, "--layers", "1-9"}).err.find("layers of 0 to 3") !=
        std::string::npos);
  CHECK(run({kQuestion, "--image", kImage, "--no-var"}).err.find("VAR to be on") !=
        std::string::npos);
  CHECK(run({kQuestion}).code == 2);
  CHECK(run({"--image", kImage}).code == 2);
  CHECK(run({kQuestion, "--questions", demo + "/questions.jsonl", "--images", images}).code == 2);
  CHECK(run({kQuestion, "--images", (folder / "none").string()}).code == 1);
}
