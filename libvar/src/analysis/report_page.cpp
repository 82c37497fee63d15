#include <c10/util/StringUtil.h>

#include <nlohmann/json.hpp>
#include <opencv2/imgproc.hpp>

#include "analysis/base64.h"
#include "analysis/report_template.h"
#include "libvar/error.h"
#include "libvar/report.h"

namespace libvar {
namespace {

using nlohmann::ordered_json;

/// Viridis, 256 x red, green, blue: rises evenly in lightness, so that it can be read without
/// colour vision.
std::string colour_scale() {
  cv::Mat levels(1, 256, CV_8U), colours;
  for (int i = 0; i < 256; ++i) levels.at<std::uint8_t>(0, i) = static_cast<std::uint8_t>(i);
  cv::applyColorMap(levels, colours, cv::COLORMAP_VIRIDIS);
  std::string out;
  for (int i = 0; i < 256; ++i) {
    for (const int channel : {2, 1, 0})
      out += static_cast<char>(colours.at<cv::Vec3b>(0, i)[channel]);
  }
  return out;
}

std::string escaped_html(std::string text) {
  c10::ReplaceAll(text, "&", "&amp;");
  c10::ReplaceAll(text, "<", "&lt;");
  c10::ReplaceAll(text, ">", "&gt;");
  return text;
}

/// JSON that can stand in a script element.
std::string escaped_json(std::string json) {
  c10::ReplaceAll(json, "<", "\\u003c");
  return json;
}

ordered_json summary_of(const std::vector<std::string>& entries) {
  auto out = ordered_json::array();
  for (const std::string& text : entries) {
    const ordered_json entry = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!entry.is_object() || !entry.contains("on"))
      throw InputError(
          c10::str("report: expected entry ", out.size(), " to be one of report_entry"));
    out.push_back({{"name", entry.at("name")},
                   {"question", entry.at("question")},
                   {"off", entry.at("off").at("answer")},
                   {"on", entry.at("on").at("answer")}});
  }
  return out;
}

}  // namespace

std::string report_page(const std::string& title, const std::vector<std::string>& entries) {
  if (entries.empty()) throw InputError("report: expected at least one entry");
  const std::string summary = escaped_json(summary_of(entries).dump());
  std::string out;
  std::string_view rest = kReportTemplate;
  for (std::size_t at = rest.find("{{"); at != std::string_view::npos; at = rest.find("{{")) {
    out += rest.substr(0, at);
    const std::size_t end = rest.find("}}", at);
    const std::string_view name = rest.substr(at + 2, end - at - 2);
    if (name == "title") out += escaped_html(title);
    if (name == "summary") out += summary;
    if (name == "colours") out += base64(colour_scale());
    for (std::size_t i = 0; name == "entries" && i < entries.size(); ++i) {
      out += "<script type=\"application/json\" class=\"entry\">";
      out += escaped_json(entries[i]);
      out += "</script>\n";
    }
    rest.remove_prefix(end + 2);
  }
  out += rest;
  return out;
}

}  // namespace libvar
