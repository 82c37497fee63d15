// var sinks heads and contribution: which heads look at the image, and what the sinks carry.

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "charts.h"
#include "inspect_flags.h"
#include "interrupt.h"
#include "libvar/error.h"
#include "numbers.h"
#include "pictures.h"
#include "sinks.h"

namespace var_command {
namespace {

constexpr std::size_t kShownHeads = 3;  // of each end

struct Head {
  std::int64_t layer = 0, head = 0;
  double ratio = 0, mass = 0, centric = 0;
};

std::vector<std::vector<double>> rows_of(const at::Tensor& values) {
  std::vector<std::vector<double>> out;
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    out.emplace_back();
    for (std::int64_t j = 0; j < values.size(1); ++j)
      out.back().push_back(values[i][j].item<double>());
  }
  return out;
}

/// Every head: mean ratio and mass over the rows, and the share of rows in which it is
/// image-centric.
std::vector<Head> measure_heads(const libvar::Inspection& found) {
  const libvar::VarParams& var = found.answer.var.params;
  const at::Tensor ratio = mean_of_numbers(found.visual_ratio), mass = found.visual_mass.mean(-1);
  const at::Tensor centric =
      ((found.visual_ratio >= var.rho) & (found.visual_mass >= var.min_visual_mass))
          .to(at::kFloat)
          .mean(-1);
  std::vector<Head> out;
  for (std::int64_t layer = 0; layer < ratio.size(0); ++layer) {
    for (std::int64_t head = 0; head < ratio.size(1); ++head) {
      out.push_back({layer, head, ratio[layer][head].item<double>(),
                     mass[layer][head].item<double>(), centric[layer][head].item<double>()});
    }
  }
  return out;
}

/// Heads with enough visual mass in the layers of the pictures, the highest ratio first.
std::vector<Head> ranked(const std::vector<Head>& heads,
                         std::pair<std::int64_t, std::int64_t> layers, double least_mass) {
  std::vector<Head> out;
  for (const Head& head : heads) {
    if (head.layer >= layers.first && head.layer <= layers.second && head.mass >= least_mass)
      out.push_back(head);
  }
  std::sort(out.begin(), out.end(), [](const Head& a, const Head& b) { return a.ratio > b.ratio; });
  return out;
}

/// Maps of the heads with the highest and the lowest ratio, mean over the rows, side by side.
void draw_heads(const InspectFlags& flags, const libvar::Inspection& found,
                const std::vector<Head>& order, std::pair<std::int64_t, std::int64_t> layers) {
  const libvar::InspectedImage& image = found.images.front();
  const cv::Mat picture = flags.picture(0);
  const auto draw = [&](const std::vector<Head>& heads, const char* name) {
    std::vector<cv::Mat> maps;
    for (const Head& head : heads) {
      const at::Tensor values = found.head_attention[head.layer - layers.first][head.head]
                                    .mean(0)
                                    .slice(0, image.positions.first, image.positions.second)
                                    .contiguous();
      const std::vector<double> shares(values.const_data_ptr<float>(),
                                       values.const_data_ptr<float>() + values.numel());
      char caption[80];
      std::snprintf(caption, sizeof caption, "layer %lld head %lld, r %.2f",
                    static_cast<long long>(head.layer), static_cast<long long>(head.head),
                    head.ratio);
      maps.push_back(heat_map(picture, image.boxes, shares,
                              *std::max_element(shares.begin(), shares.end()), caption));
    }
    if (!maps.empty()) write_picture(flags.out_file(name), beside(maps));
  };
  const std::size_t count = std::min(kShownHeads, order.size());
  draw({order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count)}, "heads-high.png");
  draw({order.end() - static_cast<std::ptrdiff_t>(count), order.end()}, "heads-low.png");
}

int heads(const InspectFlags& flags) {
  const auto model = flags.open();
  const InterruptScope interrupt;
  const auto layers = flags.layer_range(model->num_layers());
  const libvar::Inspection found = flags.inspect(model, layers, flags.out.has_value());
  const std::vector<Head> all = measure_heads(found);
  const libvar::VarParams& var = found.answer.var.params;
  if (flags.out) {
    std::vector<std::vector<std::string>> rows;
    for (const Head& head : all) {
      rows.push_back({std::to_string(head.layer), std::to_string(head.head),
                      number_text(head.ratio), number_text(head.mass), number_text(head.centric)});
    }
    write_csv(flags.out_file("heads.csv"),
              {"layer", "head", "visual_nonsink_ratio", "visual_mass", "image_centric_share"},
              rows);
    write_picture(flags.out_file("ratio.png"),
                  value_grid(rows_of(mean_of_numbers(found.visual_ratio)), 0, 1, "layer", "head",
                             "visual non-sink ratio, mean over the text rows"));
    write_picture(flags.out_file("mass.png"),
                  value_grid(rows_of(found.visual_mass.mean(-1)), 0, 1, "layer", "head",
                             "visual mass, mean over the text rows"));
    draw_heads(flags, found, ranked(all, layers, var.min_visual_mass), layers);
  }
  if (flags.json) {
    auto list = nlohmann::ordered_json::array();
    for (const Head& head : all) {
      list.push_back(
          {{"layer", head.layer},
           {"head", head.head},
           {"visual_nonsink_ratio", std::isnan(head.ratio) ? nlohmann::ordered_json(nullptr)
                                                           : nlohmann::ordered_json(head.ratio)},
           {"visual_mass", head.mass},
           {"image_centric_share", head.centric}});
    }
    std::printf("%s\n", nlohmann::ordered_json{{"answer", found.answer.text},
                                               {"rho", var.rho},
                                               {"min_visual_mass", var.min_visual_mass},
                                               {"heads", std::move(list)}}
                            .dump()
                            .c_str());
    return kDone;
  }
  std::printf(
      "answer: %s\n\nlayer  mean ratio  mean visual mass  image-centric heads (in more than half "
      "of the rows)\n",
      found.answer.text.c_str());
  for (std::int64_t layer = 0; layer < found.attention.size(0); ++layer) {
    double ratio = 0, mass = 0;
    int count = 0, numbers = 0;
    std::string centric;
    for (const Head& head : all) {
      if (head.layer != layer) continue;
      ++count;
      mass += head.mass;
      if (!std::isnan(head.ratio)) {
        ratio += head.ratio;
        ++numbers;
      }
      if (head.centric > 0.5) centric += (centric.empty() ? "" : ", ") + std::to_string(head.head);
    }
    std::printf("%5lld  %10.3f  %16.3f  %s\n", static_cast<long long>(layer), ratio / numbers,
                mass / count, centric.empty() ? "none" : centric.c_str());
  }
  if (flags.out) std::printf("\ntables and pictures: %s\n", flags.out->c_str());
  return kDone;
}

struct LayerContribution {
  std::int64_t sinks = 0, others = 0;              ///< visual tokens
  double of_sink = 0, of_other = 0;                ///< norm of a token's contribution, mean
  double attention_sink = 0, attention_other = 0;  ///< attention that a token gets, mean
};

LayerContribution measure_contribution(const libvar::Inspection& found, std::int64_t layer,
                                       float tau) {
  LayerContribution out;
  const std::vector<std::int64_t> sinks = visual_sinks(found, layer, tau);
  const at::Tensor norms = found.contribution[layer].mean(0),
                   attention = found.attention[layer].mean(0);
  std::int64_t token = 0;
  for (const libvar::InspectedImage& image : found.images) {
    for (std::int64_t i = image.positions.first; i < image.positions.second; ++i, ++token) {
      const bool is_sink = std::binary_search(sinks.begin(), sinks.end(), i);
      (is_sink ? out.sinks : out.others) += 1;
      (is_sink ? out.of_sink : out.of_other) += norms[token].item<double>();
      (is_sink ? out.attention_sink : out.attention_other) += attention[i].item<double>();
    }
  }
  const auto mean = [](double& sum, std::int64_t count) {
    if (count > 0) sum /= static_cast<double>(count);
  };
  mean(out.of_sink, out.sinks);
  mean(out.attention_sink, out.sinks);
  mean(out.of_other, out.others);
  mean(out.attention_other, out.others);
  return out;
}

/// The paper's Figure 3c, and the attention beside it: a sink and another visual token by layer.
void draw_layers(const InspectFlags& flags, const std::vector<LayerContribution>& layers) {
  const auto chart = [&](const std::string& caption, const std::string& y_name, const auto& of_sink,
                         const auto& of_other) {
    LineChart out;
    out.caption = caption;
    out.x_name = "layer";
    out.y_name = y_name;
    out.curves = {{"visual sinks", {}}, {"other visual tokens", {}}};
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const auto layer = static_cast<double>(i);
      if (layers[i].sinks > 0) {
        out.curves[0].points.emplace_back(layer, layers[i].*of_sink);
      } else {
        out.curves[0].points.emplace_back(layer, std::nan(""));
      }
      out.curves[1].points.emplace_back(layer, layers[i].*of_other);
    }
    return line_chart(out);
  };
  using One = LayerContribution;
  write_picture(
      flags.out_file("contribution-layers.png"),
      beside({chart("contribution of a visual token, mean", "norm", &One::of_sink, &One::of_other),
              chart("attention to a visual token, mean", "attention", &One::attention_sink,
                    &One::attention_other)}));
}

/// What each visual token of each image contributes, mean over the layers of the pictures.
void draw_contributions(const InspectFlags& flags, const libvar::Inspection& found) {
  const auto layers = flags.layer_range(found.contribution.size(0));
  const at::Tensor mean =
      found.contribution.slice(0, layers.first, layers.second + 1).mean(at::IntArrayRef{0, 1});
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < found.images.size(); ++i) {
    const libvar::InspectedImage& image = found.images[i];
    const std::int64_t count = image.positions.second - image.positions.first;
    const at::Tensor part = mean.narrow(0, begin, count).contiguous();
    begin += count;
    const std::vector<double> values(part.const_data_ptr<float>(),
                                     part.const_data_ptr<float>() + part.numel());
    write_picture(flags.out_file("contribution-" + std::to_string(i) + ".png"),
                  heat_map(flags.picture(i), image.boxes, values,
                           *std::max_element(values.begin(), values.end()),
                           "norm of the contribution, layers " + std::to_string(layers.first) +
                               " to " + std::to_string(layers.second)));
  }
}

int contribution(const InspectFlags& flags) {
  const auto model = flags.open();
  const InterruptScope interrupt;
  libvar::Request request = flags.request(*model);
  request.var.enabled = false;
  libvar::InspectOptions options;
  options.contributions = true;
  const libvar::Inspection found = libvar::inspect(model, request, options);
  auto list = nlohmann::ordered_json::array();
  if (!flags.json) {
    std::printf(
        "Norm of alpha_ij W_O v_j of a visual token, mean over heads and %zu text rows, without "
        "VAR\n",
        found.rows.size());
    std::printf("layer  sinks  of a sink  of another  ratio  attention ratio\n");
  }
  std::vector<std::vector<std::string>> rows;
  std::vector<LayerContribution> measured;
  for (std::int64_t layer = 0; layer < found.contribution.size(0); ++layer) {
    const LayerContribution one = measure_contribution(found, layer, request.var.tau);
    measured.push_back(one);
    const double ratio = one.of_sink / one.of_other,
                 attention = one.attention_sink / one.attention_other;
    if (flags.json) {
      list.push_back({{"layer", layer},
                      {"sinks", one.sinks},
                      {"others", one.others},
                      {"sink_contribution", one.of_sink},
                      {"other_contribution", one.of_other},
                      {"sink_attention", one.attention_sink},
                      {"other_attention", one.attention_other}});
    } else if (one.sinks == 0) {
      std::printf("%5lld  %5d  %9s  %10.4g\n", static_cast<long long>(layer), 0, "-", one.of_other);
    } else {
      std::printf("%5lld  %5lld  %9.4g  %10.4g  %5.2f  %15.2f\n", static_cast<long long>(layer),
                  static_cast<long long>(one.sinks), one.of_sink, one.of_other, ratio, attention);
    }
    rows.push_back({std::to_string(layer), std::to_string(one.sinks), std::to_string(one.others),
                    number_text(one.of_sink), number_text(one.of_other),
                    number_text(one.attention_sink), number_text(one.attention_other)});
  }
  if (flags.json) std::printf("%s\n", nlohmann::ordered_json{{"layers", list}}.dump().c_str());
  if (!flags.out) return kDone;
  write_csv(flags.out_file("contribution.csv"),
            {"layer", "sinks", "others", "sink_contribution", "other_contribution",
             "sink_attention", "other_attention"},
            rows);
  draw_layers(flags, measured);
  draw_contributions(flags, found);
  if (!flags.json) std::printf("\ntables and pictures: %s\n", flags.out->c_str());
  return kDone;
}

}  // namespace

void add_sinks_heads(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = sinks.add_subcommand(
      "heads",
      "Visual non-sink ratio and visual mass of every head; which heads look at the image");
  flags->add(*command);
  command->footer(
      "Example:\n  var sinks heads llava.pt \"What is it?\" --image photo.jpg --out heads");
  command->callback([flags, &action] { action = [flags] { return heads(*flags); }; });
}

void add_sinks_contribution(CLI::App& sinks, Action& action) {
  const auto flags = std::make_shared<InspectFlags>();
  CLI::App* command = sinks.add_subcommand(
      "contribution",
      "What visual sinks and other visual tokens carry into the text's residual stream");
  flags->add(*command);
  command->footer("Example:\n  var sinks contribution llava.pt \"What is it?\" --image photo.jpg");
  command->callback([flags, &action] { action = [flags] { return contribution(*flags); }; });
}

}  // namespace var_command
