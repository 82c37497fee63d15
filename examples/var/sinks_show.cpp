// var sinks show: where the sinks are, and what the question's and the answer's tokens look at.

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cstdio>
#include <set>

#include "inspect_flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "numbers.h"
#include "pictures.h"
#include "sinks.h"

namespace var_command {
namespace {

constexpr std::size_t kMostRows = 6;  // in the picture of the attention

struct ShowFlags : InspectFlags {
  std::vector<std::string> tokens;
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

std::vector<double> image_values(const at::Tensor& attention, const libvar::InspectedImage& image) {
  const at::Tensor part =
      attention.slice(0, image.positions.first, image.positions.second).contiguous();
  return {part.const_data_ptr<float>(), part.const_data_ptr<float>() + part.numel()};
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
  const cv::Mat picture = read_picture(flags.prompt.images[index], !flags.prompt.no_exif_rotation);
  const auto mean = [&](const at::Tensor& attention, std::size_t row) {
    return attention.slice(0, layers.first, layers.second + 1)
        .select(1, static_cast<std::int64_t>(row))
        .mean(0);
  };
  for (const std::size_t row : chosen_rows(found, flags.tokens)) {
    const std::vector<double> before = image_values(mean(found.attention, row), image),
                              after = image_values(mean(found.redistributed, row), image);
    const double most = std::max(*std::max_element(before.begin(), before.end()),
                                 *std::max_element(after.begin(), after.end()));
    const std::string name = caption_of(found, row);
    write_picture(flags.out_file("attention-" + std::to_string(index) + "-" +
                                 std::to_string(found.rows[row]) + ".png"),
                  beside({heat_map(picture, image.boxes, before, most, name + " before VAR"),
                          heat_map(picture, image.boxes, after, most, name + " after VAR")}));
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
  const cv::Mat picture = read_picture(flags.prompt.images[index], !flags.prompt.no_exif_rotation);
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

/// |x[d]| of BOS, a visual sink and another visual token in the middle of the layers.
void write_magnitudes(const ShowFlags& flags, const std::shared_ptr<const libvar::Model>& model,
                      const libvar::Inspection& found, std::int64_t layer) {
  const auto sinks = visual_sinks(found, layer, found.answer.var.params.tau);
  std::vector<std::string> names{"first"};
  libvar::InspectOptions options;
  options.magnitude_positions = {0};
  std::int64_t plain = found.images.front().positions.first;
  while (std::find(sinks.begin(), sinks.end(), plain) != sinks.end()) ++plain;
  std::vector<std::pair<std::int64_t, std::string>> more{{plain, "visual"}};
  if (!sinks.empty()) more.emplace_back(sinks.front(), "visual_sink");
  std::sort(more.begin(), more.end());
  for (const auto& [position, name] : more) {
    options.magnitude_positions.push_back(position);
    names.push_back(name);
  }
  libvar::Request request = flags.request(*model);
  request.generation.max_new_tokens = 1;
  const at::Tensor values = libvar::inspect(model, request, options).magnitudes;
  std::vector<std::vector<std::string>> rows;
  for (std::int64_t l = 0; l < values.size(0); ++l) {
    for (std::size_t i = 0; i < names.size(); ++i) {
      const auto [top, dims] = values[l][static_cast<std::int64_t>(i)].topk(8);
      const double median = values[l][static_cast<std::int64_t>(i)].median().item<double>();
      for (std::int64_t k = 0; k < 8; ++k) {
        rows.push_back({std::to_string(l), names[i], std::to_string(options.magnitude_positions[i]),
                        std::to_string(dims[k].item<std::int64_t>()),
                        number_text(top[k].item<double>()), number_text(median)});
      }
    }
  }
  write_csv(flags.out_file("magnitudes.csv"),
            {"layer", "token", "position", "dimension", "magnitude", "median"}, rows);
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
  const libvar::Inspection found = libvar::inspect(model, flags.request(*model));
  const Layers layers = flags.layer_range(found.attention.size(0));
  chosen_rows(found, flags.tokens);
  if (flags.out) {
    for (std::size_t i = 0; i < found.images.size(); ++i) {
      draw_sinks(flags, found, layers, i);
      draw_attention(flags, found, layers, i);
    }
    write_tables(flags, found);
    write_magnitudes(flags, model, found, layers.first);
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
                   "Draw tokens whose text holds this; else those of the answer")
      ->type_name("TEXT");
  command->footer(
      "Example:\n  var sinks show llava.pt \"Is there a bird?\" --image photo.jpg --token bird "
      "--out looks");
  command->callback([flags, &action] { action = [flags] { return show(*flags); }; });
}

}  // namespace var_command
