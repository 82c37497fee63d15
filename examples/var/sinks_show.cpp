// var sinks show: where the sinks are, and what the question's and the answer's tokens look at.

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <numeric>
#include <set>

#include "charts.h"
#include "inspect_flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "numbers.h"
#include "pictures.h"
#include "sinks.h"

namespace var_command {
namespace {

constexpr std::size_t kMostRows = 6;  // in the picture of the attention
constexpr int kHeadWidth = 240;       // pixels across of a single head's map

struct ShowFlags : InspectFlags {
  std::vector<std::string> tokens;
  std::optional<std::string> heads;
};

using Layers = std::pair<std::int64_t, std::int64_t>;

/// Rows whose text holds one of --token; else the last of the prompt and the first of the answer.
std::vector<std::size_t> chosen_rows(const libvar::Inspection& found,
                                     const std::vector<std::string>& tokens) {
  std::vector<std::size_t> out;
  const auto prompt = static_cast<std::int64_t>(found.answer.prompt_tokens.size());
  for (std::size_t i = 0; i < found.rows.size(); ++i) {
    const std::string& piece = found.pieces[static_cast<std::size_t>(found.rows[i])];
    const bool named = std::any_of(tokens.begin(), tokens.end(), [&](const std::string& token) {
      return piece.find(token) != std::string::npos;
    });
    if (tokens.empty() ? found.rows[i] >= prompt - 1 : named) out.push_back(i);
  }
  if (out.empty())
    throw libvar::InputError("--token: no token of the question or the answer holds this text");
  if (out.size() > kMostRows) out.resize(kMostRows);
  return out;
}

/// Those of --heads, ascending.
std::vector<std::int64_t> chosen_heads(const std::string& text, std::int64_t num_heads) {
  std::vector<std::int64_t> out;
  if (text == "all") {
    out.resize(static_cast<std::size_t>(num_heads));
    std::iota(out.begin(), out.end(), 0);
    return out;
  }
  const char* at = text.data();
  const char* const last = at + text.size();
  for (;;) {
    std::int64_t head = -1;
    const auto [end, error] = std::from_chars(at, last, head);
    if (error != std::errc() || head < 0 || head >= num_heads || (end != last && *end != ',')) {
      throw libvar::ConfigError("--heads: expected all, or heads of 0 to " +
                                std::to_string(num_heads - 1) + " as H,H, found " + text);
    }
    out.push_back(head);
    if (end == last) break;
    at = end + 1;
  }
  std::sort(out.begin(), out.end());
  out.erase(std::unique(out.begin(), out.end()), out.end());
  return out;
}

std::vector<double> image_values(const at::Tensor& attention, const libvar::InspectedImage& image) {
  const at::Tensor part =
      attention.slice(0, image.positions.first, image.positions.second).contiguous();
  return {part.const_data_ptr<float>(), part.const_data_ptr<float>() + part.numel()};
}

/// Two maps with one scale. @param before, after  [N] attention
cv::Mat before_and_after(const cv::Mat& picture, const libvar::InspectedImage& image,
                         const at::Tensor& before, const at::Tensor& after, const std::string& name,
                         int width = 0) {
  const std::vector<double> left = image_values(before, image), right = image_values(after, image);
  const double most = std::max(*std::max_element(left.begin(), left.end()),
                               *std::max_element(right.begin(), right.end()));
  return beside({heat_map(picture, image.boxes, left, most, name + " before VAR", width),
                 heat_map(picture, image.boxes, right, most, name + " after VAR", width)});
}

std::string caption_of(const libvar::Inspection& found, std::size_t row) {
  std::string piece = found.pieces[static_cast<std::size_t>(found.rows[row])];
  std::replace(piece.begin(), piece.end(), '\n', ' ');
  return std::to_string(found.rows[row]) + " '" + piece + "'";
}

/// One row of pictures for each chosen token: before and after redistribution.
void draw_attention(const ShowFlags& flags, const libvar::Inspection& found, const Layers& layers,
                    std::size_t index) {
  const libvar::InspectedImage& image = found.images[index];
  const cv::Mat picture = flags.picture(index);
  const auto mean = [&](const at::Tensor& attention, std::size_t row) {
    return attention.slice(0, layers.first, layers.second + 1)
        .select(1, static_cast<std::int64_t>(row))
        .mean(0);
  };
  for (const std::size_t row : chosen_rows(found, flags.tokens)) {
    write_picture(flags.out_file("attention-" + std::to_string(index) + "-" +
                                 std::to_string(found.rows[row]) + ".png"),
                  before_and_after(picture, image, mean(found.attention, row),
                                   mean(found.redistributed, row), caption_of(found, row)));
  }
}

/// For each image, chosen token and layer a picture with the maps of single heads, four in a line.
void draw_heads(const ShowFlags& flags, const libvar::Inspection& found,
                const std::vector<std::int64_t>& heads) {
  for (std::size_t index = 0; index < found.images.size(); ++index) {
    const libvar::InspectedImage& image = found.images[index];
    const cv::Mat picture = flags.picture(index);
    for (const std::size_t row : chosen_rows(found, flags.tokens)) {
      const auto at = static_cast<std::int64_t>(row);
      for (std::size_t i = 0; i < found.head_layers.size(); ++i) {
        const auto layer = static_cast<std::int64_t>(i);
        std::vector<cv::Mat> maps;
        for (const std::int64_t head : heads) {
          maps.push_back(before_and_after(picture, image, found.head_attention[layer][head][at],
                                          found.head_redistributed[layer][head][at],
                                          "head " + std::to_string(head), kHeadWidth));
        }
        write_picture(flags.out_file("heads-" + std::to_string(index) + "-" +
                                     std::to_string(found.rows[row]) + "-" +
                                     std::to_string(found.head_layers[i]) + ".png"),
                      in_lines(maps, 4));
      }
    }
  }
}

void draw_sinks(const ShowFlags& flags, const libvar::Inspection& found, const Layers& layers,
                std::size_t index) {
  const libvar::InspectedImage& image = found.images[index];
  std::set<std::int64_t> tokens;
  for (std::int64_t layer = layers.first; layer <= layers.second; ++layer) {
    for (const std::int64_t i : visual_sinks(found, layer, found.answer.var.params.tau)) {
      if (i >= image.positions.first && i < image.positions.second)
        tokens.insert(i - image.positions.first);
    }
  }
  const cv::Mat picture = flags.picture(index);
  const std::string caption = std::to_string(tokens.size()) + " visual sinks in layers " +
                              std::to_string(layers.first) + " to " + std::to_string(layers.second);
  write_picture(flags.out_file("sinks-" + std::to_string(index) + ".png"),
                outlined(picture, image.boxes, {tokens.begin(), tokens.end()}, caption));
}

void write_tables(const ShowFlags& flags, const libvar::Inspection& found) {
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t layer = 0; layer < found.sink_scores.size(0); ++layer) {
    for (std::int64_t i = 0; i < found.sink_scores.size(1); ++i) {
      const auto at = static_cast<std::size_t>(i);
      std::string image;
      for (std::size_t k = 0; k < found.images.size(); ++k) {
        if (i >= found.images[k].positions.first && i < found.images[k].positions.second)
          image = std::to_string(k);
      }
      rows.push_back({std::to_string(layer), std::to_string(i), std::to_string(found.tokens[at]),
                      found.pieces[at], image,
                      number_text(found.sink_scores[layer][i].item<double>())});
    }
  }
  write_csv(flags.out_file("sink_scores.csv"),
            {"layer", "position", "token", "text", "image", "phi"}, rows);
  rows.clear();
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    for (std::size_t row = 0; row < found.rows.size(); ++row) {
      const auto at = static_cast<std::int64_t>(row);
      for (const libvar::InspectedImage& image : found.images) {
        for (std::int64_t i = image.positions.first; i < image.positions.second; ++i) {
          rows.push_back({std::to_string(layer), std::to_string(found.rows[row]), std::to_string(i),
                          number_text(found.attention[layer][at][i].item<double>()),
                          number_text(found.redistributed[layer][at][i].item<double>())});
        }
      }
    }
  }
  write_csv(flags.out_file("attention.csv"),
            {"layer", "row", "position", "attention", "redistributed"}, rows);
}

/// |x[d]| of some tokens in all layers.
struct Magnitudes {
  std::vector<std::string> names;  ///< first, visual_sink, visual; without a sink but two
  std::vector<std::int64_t> positions;
  at::Tensor values;  ///< [L, tokens, D]
};

/// Of the first token, and of a visual sink of the layer and another visual token, where there are.
Magnitudes measure_magnitudes(const ShowFlags& flags,
                              const std::shared_ptr<const libvar::Model>& model,
                              const libvar::Inspection& found, std::int64_t layer) {
  const auto sinks = visual_sinks(found, layer, found.answer.var.params.tau);
  std::vector<std::pair<std::int64_t, std::string>> tokens{{0, "first"}};
  if (!sinks.empty()) tokens.emplace_back(sinks.front(), "visual_sink");
  const auto& [begin, end] = found.images.front().positions;
  std::int64_t plain = begin;
  while (std::binary_search(sinks.begin(), sinks.end(), plain)) ++plain;
  if (plain < end) tokens.emplace_back(plain, "visual");
  std::sort(tokens.begin(), tokens.end());
  Magnitudes out;
  for (const auto& [position, name] : tokens) {
    out.positions.push_back(position);
    out.names.push_back(name);
  }
  libvar::InspectOptions options;
  options.magnitude_positions = out.positions;
  libvar::Request request = flags.request(*model);
  request.generation.max_new_tokens = 1;
  out.values = libvar::inspect(model, request, options).magnitudes;
  return out;
}

void write_magnitudes(const ShowFlags& flags, const Magnitudes& found) {
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t l = 0; l < found.values.size(0); ++l) {
    for (std::size_t i = 0; i < found.names.size(); ++i) {
      const auto [top, dims] = found.values[l][static_cast<std::int64_t>(i)].topk(8);
      const double median = found.values[l][static_cast<std::int64_t>(i)].median().item<double>();
      for (std::int64_t k = 0; k < 8; ++k) {
        rows.push_back({std::to_string(l), found.names[i], std::to_string(found.positions[i]),
                        std::to_string(dims[k].item<std::int64_t>()),
                        number_text(top[k].item<double>()), number_text(median)});
      }
    }
  }
  write_csv(flags.out_file("magnitudes.csv"),
            {"layer", "token", "position", "dimension", "magnitude", "median"}, rows);
}

/// The paper's Figure 2: the tokens in a layer, one below another, the sink dimensions labelled.
void draw_magnitudes(const ShowFlags& flags, const Magnitudes& found,
                     std::vector<std::int64_t> sink_dims, std::int64_t layer) {
  std::sort(sink_dims.begin(), sink_dims.end());
  std::vector<cv::Mat> charts;
  for (std::size_t i = 0; i < found.names.size(); ++i) {
    const at::Tensor values = found.values[layer][static_cast<std::int64_t>(i)].contiguous();
    const float* magnitude = values.const_data_ptr<float>();
    LineChart chart;
    const std::string name = found.names[i] == "first"         ? "first token"
                             : found.names[i] == "visual_sink" ? "visual sink"
                                                               : "other visual token";
    chart.caption = name + " (position " + std::to_string(found.positions[i]) +
                    ") entering layer " + std::to_string(layer);
    chart.x_name = "dimension d of the hidden state";
    chart.y_name = "|x[d]|";
    chart.stems = true;
    chart.width = 720;
    chart.height = 240;
    chart.curves.emplace_back();
    for (std::int64_t d = 0; d < values.numel(); ++d)
      chart.curves[0].points.emplace_back(static_cast<double>(d), magnitude[d]);
    for (const std::int64_t d : sink_dims)
      chart.labels.push_back({static_cast<double>(d), magnitude[d], std::to_string(d)});
    charts.push_back(line_chart(chart));
  }
  write_picture(flags.out_file("magnitudes-" + std::to_string(layer) + ".png"),
                in_lines(charts, 1));
}

nlohmann::ordered_json show_json(const libvar::Inspection& found) {
  auto layers = nlohmann::ordered_json::array();
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    const auto shares = [&](const at::Tensor& attention) {
      const AttentionShares s = attention_shares(found, attention, layer);
      return nlohmann::ordered_json{
          {"visual_sinks", s.sinks}, {"visual_others", s.others}, {"text", s.text}};
    };
    layers.push_back(
        {{"layer", layer},
         {"visual_sinks", visual_sinks(found, layer, found.answer.var.params.tau)},
         {"first_token_phi", found.sink_scores[layer][0].item<double>()},
         {"attention", shares(found.attention)},
         {"redistributed", shares(found.redistributed)},
         {"selected_share", found.selected[layer].to(at::kFloat).mean().item<double>()}});
  }
  return {{"answer", found.answer.text},
          {"rows", found.rows},
          {"visual_spans", found.answer.visual_spans},
          {"layers", std::move(layers)}};
}

void print_show(const libvar::Inspection& found) {
  std::printf("answer: %s\n\n", found.answer.text.c_str());
  std::printf("Attention of %zu text rows, mean over the heads, before and after VAR\n",
              found.rows.size());
  std::printf(
      "layer  phi of the first  visual sinks  to sinks           to other visual    to text\n");
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    const AttentionShares before = attention_shares(found, found.attention, layer),
                          after = attention_shares(found, found.redistributed, layer);
    std::printf("%5lld  %16.2f  %12zu  %6.2f -> %6.2f %%  %6.2f -> %6.2f %%  %6.2f -> %6.2f %%\n",
                static_cast<long long>(layer), found.sink_scores[layer][0].item<double>(),
                visual_sinks(found, layer, found.answer.var.params.tau).size(), 100 * before.sinks,
                100 * after.sinks, 100 * before.others, 100 * after.others, 100 * before.text,
                100 * after.text);
  }
}

int show(const ShowFlags& flags) {
  const auto model = flags.open();
  const InterruptScope interrupt;
  const Layers layers = flags.layer_range(model->num_layers());
  const libvar::Inspection found =
      flags.inspect(model, layers, flags.heads.has_value() && flags.out.has_value());
  chosen_rows(found, flags.tokens);
  std::vector<std::int64_t> heads;
  if (flags.heads) heads = chosen_heads(*flags.heads, found.visual_mass.size(1));
  if (flags.out) {
    for (std::size_t i = 0; i < found.images.size(); ++i) {
      draw_sinks(flags, found, layers, i);
      draw_attention(flags, found, layers, i);
    }
    if (flags.heads) draw_heads(flags, found, heads);
    write_tables(flags, found);
    const Magnitudes magnitudes = measure_magnitudes(flags, model, found, layers.first);
    write_magnitudes(flags, magnitudes);
    draw_magnitudes(flags, magnitudes, model->sink_dimensions(), layers.first);
  }
  if (flags.json) {
    std::printf("%s\n", show_json(found).dump().c_str());
  } else {
    print_show(found);
    if (flags.out) std::printf("\ntables and pictures: %s\n", flags.out->c_str());
  }
  return kDone;
}

}  // namespace

void add_sinks_show(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<ShowFlags>();
  CLI::App* command = sinks.add_subcommand(
      "show", "Where the sinks are, and what the tokens of a question and its answer look at");
  flags->add(*command);
  command
      ->add_option("--token", flags->tokens,
                   "Draw the first tokens whose text holds this, else the prompt's last and the "
                   "answer's first; at most 6")
      ->type_name("TEXT");
  command
      ->add_option("--heads", flags->heads,
                   "With --out: draw single heads too, in each of the layers")
      ->type_name("all|H,H");
  command->footer(
      "Example:\n  var sinks show llava.pt \"Is there a bird?\" --image photo.jpg --token bird "
      "--out looks");
  command->callback([flags, &action] { action = [flags] { return show(*flags); }; });
}

}  // namespace var_command
