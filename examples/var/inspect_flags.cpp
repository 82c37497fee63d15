#include "inspect_flags.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/nanmean.h>

#include <charconv>
#include <fstream>

#include "libvar/error.h"
#include "pictures.h"
#include "sink_search.h"

namespace var_command {

void InspectFlags::add(CLI::App& command) {
  command.add_option("MODEL.pt", model, "Archive written by var convert")->required();
  command.add_option("QUESTION", question, "A question about the pictures")->required();
  prompt.add(command);
  var.add(command);
  command.add_option("--layers", layers, "Layers of the pictures; 10 to 12 of 32 in proportion")
      ->type_name("A-B");
  command.add_option("--max-new-tokens", max_new_tokens, "Most tokens of the answer")
      ->check(CLI::Range(std::int64_t{1}, std::int64_t{4096}))
      ->capture_default_str();
  command.add_option("--out", out, "Folder for tables (CSV) and pictures (PNG)")->type_name("DIR");
  command.add_flag("--json", json, "Print a JSON object");
  common.add(command, "Type of the computation; auto fits the device");
}

std::shared_ptr<const libvar::Model> InspectFlags::open() const {
  common.apply();
  prompt.check();
  var.check();
  if (prompt.images.empty()) throw libvar::InputError("--image: expected at least one picture");
  auto loaded = load_model(model, common);
  if (!loaded->has_sink_dimensions()) throw libvar::InputError(no_sink_dimensions(model));
  if (out) {
    std::error_code error;
    std::filesystem::create_directories(*out, error);
    if (error) throw libvar::InputError("--out " + *out + ": " + error.message());
  }
  return loaded;
}

libvar::Request InspectFlags::request(const libvar::Model& model) const {
  libvar::Request request;
  prompt.fill(request);
  request.images.assign(prompt.images.begin(), prompt.images.end());
  request.question = question;
  request.var = var.params(model);
  request.generation.max_new_tokens = max_new_tokens;
  return request;
}

std::pair<std::int64_t, std::int64_t> InspectFlags::layer_range(std::int64_t num_layers) const {
  if (layers) return parse_layers(*layers, num_layers);
  const std::int64_t first = (10 * num_layers + 16) / 32, last = (12 * num_layers + 16) / 32;
  return {first, std::max(first, std::min(last, num_layers - 1))};
}

std::pair<std::int64_t, std::int64_t> parse_layers(const std::string& layers,
                                                   std::int64_t num_layers) {
  const auto fail = [&] {
    return libvar::ConfigError("--layers: expected A or A-B with layers of 0 to " +
                               std::to_string(num_layers - 1) + ", found " + layers);
  };
  const auto parse = [&](std::string_view number) {
    std::int64_t value = -1;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size()) throw fail();
    return value;
  };
  const std::size_t dash = layers.find('-');
  const std::string_view text = layers;
  const std::int64_t first = parse(text.substr(0, dash));
  const std::int64_t last = dash == std::string::npos ? first : parse(text.substr(dash + 1));
  if (first < 0 || last < first || last >= num_layers) throw fail();
  return {first, last};
}

libvar::Inspection InspectFlags::inspect(const std::shared_ptr<const libvar::Model>& model,
                                         const std::pair<std::int64_t, std::int64_t>& layers,
                                         bool keeps_heads) const {
  libvar::InspectOptions options;
  for (std::int64_t layer = layers.first; keeps_heads && layer <= layers.second; ++layer)
    options.head_layers.push_back(layer);
  return libvar::inspect(model, request(*model), options);
}

cv::Mat InspectFlags::picture(std::size_t index) const {
  return read_picture(prompt.images.at(index), !prompt.no_exif_rotation);
}

std::filesystem::path InspectFlags::out_file(const std::string& name) const {
  return std::filesystem::path(out.value_or(".")) / name;
}

std::vector<std::int64_t> visual_sinks(const libvar::Inspection& found, std::int64_t layer,
                                       float tau) {
  std::vector<std::int64_t> out;
  const at::Tensor scores = found.sink_scores[layer].contiguous();
  const float* phi = scores.const_data_ptr<float>();
  for (const libvar::InspectedImage& image : found.images) {
    for (std::int64_t i = image.positions.first; i < image.positions.second; ++i) {
      if (phi[i] >= tau) out.push_back(i);
    }
  }
  return out;
}

AttentionShares attention_shares(const libvar::Inspection& found, const at::Tensor& attention,
                                 std::int64_t layer) {
  AttentionShares out;
  const at::Tensor mean = attention[layer].mean(0).contiguous();
  const float* share = mean.const_data_ptr<float>();
  for (const std::int64_t i : visual_sinks(found, layer, found.answer.var.params.tau))
    out.sinks += share[i];
  double visual = 0, all = 0;
  for (const libvar::InspectedImage& image : found.images) {
    for (std::int64_t i = image.positions.first; i < image.positions.second; ++i)
      visual += share[i];
  }
  for (std::int64_t i = 0; i < mean.numel(); ++i) all += share[i];
  out.others = visual - out.sinks;
  out.text = all - visual;
  return out;
}

at::Tensor mean_of_numbers(const at::Tensor& values) {
  return at::nanmean(values, -1);
}

void write_csv(const std::filesystem::path& path, const std::vector<std::string>& header,
               const std::vector<std::vector<std::string>>& rows) {
  std::ofstream file(path, std::ios::binary);
  const auto line = [&](const std::vector<std::string>& cells) {
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (i > 0) file << ',';
      if (cells[i].find_first_of(",\"\n\r") == std::string::npos) {
        file << cells[i];
        continue;
      }
      file << '"';
      for (const char c : cells[i]) file << (c == '"' ? "\"\"" : std::string(1, c));
      file << '"';
    }
    file << '\n';
  };
  line(header);
  for (const auto& row : rows) line(row);
  file.close();
  if (!file) throw libvar::InputError(path.string() + ": can't be written");
}

}  // namespace var_command
