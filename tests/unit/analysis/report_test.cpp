// The entries of a report hold what an inspection finds; a page holds its entries.

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <zlib.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "golden_fixture.h"
#include "libvar/error.h"
#include "libvar/inspection.h"
#include "libvar/report.h"
#include "unit/model/family_run.h"
#include "unit/model/golden_run.h"

#include "catch.h"  // last: c10 has a CHECK of its own

using namespace libvar;
using namespace libvar::testing;
using nlohmann::json;

namespace {

json run_of(const std::string& name, const std::string& run) {
  for (const json& one : family_case(name).at("runs")) {
    if (one.at("name") == run) return one;
  }
  throw std::runtime_error(name + " has no run " + run);
}

std::string from_base64(const std::string& text) {
  static const std::string digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    if (c == '=') break;
    bits = bits << 6U | static_cast<std::uint32_t>(digits.find(c));
    count += 6;
    if (count < 8) continue;
    count -= 8;
    out += static_cast<char>(bits >> static_cast<unsigned>(count) & 255U);
  }
  return out;
}

at::Tensor unpacked(const json& text, at::IntArrayRef shape, at::ScalarType dtype = at::kFloat) {
  const std::string bytes = from_base64(text.get<std::string>());
  at::Tensor out = at::empty(shape, dtype);
  uLongf length = out.nbytes();
  REQUIRE(uncompress(static_cast<Bytef*>(out.mutable_data_ptr()), &length,
                     reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()) == Z_OK);
  REQUIRE(length == out.nbytes());
  return out;
}

at::Tensor visual_part(const at::Tensor& attention, const Inspection& found) {
  std::vector<at::Tensor> parts;
  for (const InspectedImage& image : found.images)
    parts.push_back(attention.slice(-1, image.positions.first, image.positions.second));
  return at::cat(parts, -1);
}

/// An entry's run against the inspection of the same run.
void check_run(const json& run, const Inspection& found, std::int64_t head_layer, float tau) {
  CHECK(run.at("answer") == found.answer.text);
  const auto rows = static_cast<std::int64_t>(found.rows.size());
  const std::int64_t heads = found.visual_mass.size(1);
  std::string answer;
  for (std::size_t i = 0; i < run.at("words").size(); ++i) {
    const json& word = run.at("words")[i];
    if (word.at("answer")) answer += word.at("text");
    if (i < found.rows.size()) CHECK(word.at("position") == found.rows[i]);
  }
  CHECK(answer.substr(answer.find_first_not_of(" \n")) == found.answer.text);
  CHECK(run.at("words").back().at("position").is_null());  // the length ends these answers
  REQUIRE(run.at("layers").size() == static_cast<std::size_t>(found.attention.size(0)));
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    CAPTURE(layer);
    const json& one = run.at("layers")[static_cast<std::size_t>(layer)];
    const bool has_heads = layer == head_layer;
    CHECK(one.at("heads") == (has_heads ? heads : 0));
    const std::int64_t slots = has_heads ? heads + 1 : 1;
    const at::Tensor mean = visual_part(found.redistributed[layer], found);  // [R, V]
    const at::Tensor codes = unpacked(one.at("codes"), {rows, slots, mean.size(-1)}, at::kByte);
    const at::Tensor most = unpacked(one.at("most"), {rows, slots});
    const at::Tensor shown = (codes.to(at::kFloat) / 255).square() * most.unsqueeze(-1);
    const auto check = [&](const at::Tensor& actual, const at::Tensor& expected,
                           const at::Tensor& largest) {
      CHECK((actual - expected).abs().le(0.004 * largest.unsqueeze(-1)).all().item<bool>());
    };
    check(shown.select(1, 0), mean, mean.amax(-1));
    const at::Tensor after = unpacked(one.at("after"), {rows, slots, 2});
    const at::Tensor phi = unpacked(one.at("phi"), {mean.size(-1)});
    CHECK(phi.equal(visual_part(found.sink_scores[layer], found)));
    CHECK(after.select(1, 0).select(-1, 0).allclose((mean * (phi >= tau)).sum(-1), 1e-5, 1e-6));
    CHECK(after.select(1, 0).sum(-1).allclose(mean.sum(-1), 1e-5, 1e-6));
    const at::Tensor mass = unpacked(one.at("mass"), {heads, rows});
    CHECK(mass.equal(found.visual_mass[layer]));
    if (!has_heads) continue;
    const at::Tensor before = unpacked(one.at("before"), {rows, slots, 2});
    CHECK(before.slice(1, 1).sum(-1).transpose(0, 1).allclose(mass, 1e-4, 1e-5));
    for (std::int64_t head = 0; head < heads; ++head) {
      const at::Tensor single = visual_part(found.head_redistributed[0][head], found);
      check(shown.select(1, head + 1), single, single.amax(-1));
    }
  }
}

}  // namespace

TEST_CASE("a report's entry holds what an inspection finds, with VAR and without",
          "[inspection][report]") {
  const auto& [name, run] =
      GENERATE(std::pair("qwen_flat", "two_images"), std::pair("internvl_small", "on"));
  CAPTURE(name);
  const auto model = load_family_case(family_case(name));
  Request request = family_request(run_of(name, run));
  ReportOptions options;
  options.name = "a </script> name";
  options.head_layers = {1, 1};
  const json entry = json::parse(report_entry(model, request, options));
  InspectOptions keep;
  keep.head_layers = {1};
  const Inspection on = inspect(model, request, keep);
  check_run(entry.at("on"), on, 1, request.var.tau);
  REQUIRE(entry.at("pictures").size() == on.images.size());
  for (std::size_t i = 0; i < on.images.size(); ++i) {
    const json& picture = entry.at("pictures")[i];
    CHECK(picture.at("begin") == on.images[i].positions.first);
    CHECK(picture.at("width") == on.images[i].width);
    CHECK(picture.at("boxes").size() == on.images[i].boxes.size());
    CHECK(std::abs(picture.at("boxes").back().at(2).get<double>() -
                   on.images[i].boxes.back().right) <= 0.005);
  }
  options.head_layers = {3, 1};
  CHECK_THROWS_AS(report_entry(model, request, options), ConfigError);
  options.head_layers = {0, on.attention.size(0)};
  CHECK_THROWS_AS(report_entry(model, request, options), ConfigError);
  request.var.enabled = false;
  check_run(entry.at("off"), inspect(model, request, keep), 1, request.var.tau);
  CHECK_THROWS_AS(report_entry(model, request, options), ConfigError);
}

TEST_CASE("a report's page holds its entries and nothing of their text as markup", "[report]") {
  const json one = {{"name", "a</script>b"},
                    {"question", "q<!--"},
                    {"off", {{"answer", "x"}}},
                    {"on", {{"answer", "y"}}}};
  const std::string page = report_page("<Title> & more", {one.dump(), one.dump()});
  CHECK(page.find("&lt;Title&gt; &amp; more") != std::string::npos);
  CHECK(page.find("<Title>") == std::string::npos);
  CHECK(page.find("{{") == std::string::npos);
  CHECK(page.find("a</script>b") == std::string::npos);
  const std::string begin = "<script type=\"application/json\" class=\"entry\">";
  const std::size_t at = page.find(begin) + begin.size();
  CHECK(json::parse(page.substr(at, page.find("</script>", at) - at)) == one);
  CHECK(page.find(begin, at) != std::string::npos);
  CHECK_THROWS_AS(report_page("t", {}), InputError);
  CHECK_THROWS_AS(report_page("t", {"{}"}), InputError);
}
