// The main job on the demo model: every sample question with VAR and without it, and one picture
// for each image with its visual sink tokens outlined.
//
// usage: demo MODEL.pt SAMPLES_DIR OUT_DIR     SAMPLES_DIR holds images/ and questions.jsonl

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <set>
#include <string>
#include <vector>

#include "libvar/libvar.h"

namespace {

namespace fs = std::filesystem;

constexpr int kTile = 64;         // pixels of one visual token in the picture
constexpr int kCaptionLine = 24;  // pixels

struct Sample {
  std::string image, question, expected, answer, plain_answer;
};

struct Totals {
  int right = 0, plain_right = 0;
  std::int64_t selected = 0, eligible = 0;
};

std::vector<Sample> read_samples(const fs::path& file) {
  std::ifstream in(file);
  if (!in) throw libvar::InputError("demo: can't read " + file.string());
  std::vector<Sample> samples;
  for (std::string line; std::getline(in, line);) {
    if (line.empty()) continue;
    const auto object = nlohmann::json::parse(line);
    samples.push_back({object.at("image"), object.at("text"), object.at("label"), {}, {}});
  }
  return samples;
}

// Visual tokens of the first image that are sinks in any layer that VAR acts on.
std::set<std::int64_t> visual_sink_tokens(const libvar::Answer& answer) {
  std::set<std::int64_t> tokens;
  const auto [begin, end] = answer.visual_spans.at(0);
  const auto last_layer = static_cast<std::int64_t>(answer.var.visual_sinks.size()) - 1;
  for (std::int64_t layer = answer.var.params.first_layer.value_or(0); layer < last_layer;
       ++layer) {
    for (const std::int64_t position : answer.var.visual_sinks[layer])
      tokens.insert(position - begin);
  }
  return tokens;
}

// The picture as the model's token grid sees it, sinks outlined, questions and answers beneath.
cv::Mat draw(const cv::Mat& picture, std::int64_t visual_tokens,
             const std::set<std::int64_t>& sinks, const std::vector<Sample>& samples) {
  const int grid = static_cast<int>(std::lround(std::sqrt(static_cast<double>(visual_tokens))));
  const int side = grid * kTile;
  const int caption = static_cast<int>(samples.size() * 2 + 1) * kCaptionLine;
  cv::Mat canvas(side + caption, std::max(side, 760), CV_8UC3, cv::Scalar(255, 255, 255));
  cv::Mat resized;
  cv::resize(picture, resized, {side, side}, 0, 0, cv::INTER_CUBIC);
  resized.copyTo(canvas(cv::Rect(0, 0, side, side)));
  for (int i = 0; i < grid * grid; ++i) {
    const cv::Rect tile(i % grid * kTile, i / grid * kTile, kTile, kTile);
    cv::rectangle(canvas, tile, cv::Scalar(205, 205, 205), 1);
  }
  for (const std::int64_t token : sinks) {
    const int row = static_cast<int>(token) / grid, column = static_cast<int>(token) % grid;
    const cv::Rect tile(column * kTile + 2, row * kTile + 2, kTile - 4, kTile - 4);
    cv::rectangle(canvas, tile, cv::Scalar(0, 0, 0), 6);
    cv::rectangle(canvas, tile, cv::Scalar(0, 159, 230),
                  3);  // orange on black: readable for colour-blind people
  }
  int line = side + kCaptionLine;
  const auto write = [&](const std::string& text, const cv::Scalar& colour) {
    cv::putText(canvas, text, {8, line}, cv::FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv::LINE_AA);
    line += kCaptionLine;
  };
  for (const Sample& sample : samples) {
    write(sample.question, cv::Scalar(0, 0, 0));
    write("    VAR: " + sample.answer + "    without: " + sample.plain_answer +
              "    expected: " + sample.expected,
          cv::Scalar(90, 60, 0));
  }
  return canvas;
}

void answer_samples(const fs::path& model_path, const fs::path& samples_dir,
                    const fs::path& out_dir) {
  const auto model = libvar::Model::load(model_path, {.dtype = "fp32"});
  libvar::Session session(model);
  auto samples = read_samples(samples_dir / "questions.jsonl");
  fs::create_directories(out_dir);
  Totals totals;
  std::map<std::string, std::vector<Sample>> by_image;
  std::map<std::string, libvar::Answer> answers;
  std::printf("%-60s %-18s %-18s %-18s\n", "question", "VAR", "without VAR", "expected");
  for (Sample& sample : samples) {
    libvar::Request request;
    request.images = {samples_dir / "images" / sample.image};
    request.question = sample.question;
    request.generation.max_new_tokens = 32;
    request.var = model->var_defaults();
    const libvar::Answer answer = session.ask(request);
    request.var.enabled = false;
    sample.answer = answer.text;
    sample.plain_answer = session.ask(request).text;
    totals.right += sample.answer == sample.expected;
    totals.plain_right += sample.plain_answer == sample.expected;
    for (const auto rows : answer.var.selected_rows) totals.selected += rows;
    for (const auto rows : answer.var.eligible_rows) totals.eligible += rows;
    std::printf("%-60s %-18s %-18s %-18s\n", (sample.image + ": " + sample.question).c_str(),
                sample.answer.c_str(), sample.plain_answer.c_str(), sample.expected.c_str());
    by_image[sample.image].push_back(sample);
    answers[sample.image] = answer;
  }
  for (const auto& [image, questions] : by_image) {
    const libvar::Answer& answer = answers.at(image);
    const auto [begin, end] = answer.visual_spans.at(0);
    const cv::Mat picture = cv::imread((samples_dir / "images" / image).string(), cv::IMREAD_COLOR);
    const fs::path out = out_dir / fs::path(image).filename();
    if (!cv::imwrite(out.string(),
                     draw(picture, end - begin, visual_sink_tokens(answer), questions))) {
      throw libvar::InputError("demo: can't write " + out.string());
    }
  }
  std::printf(
      "\nright: %d of %zu with VAR, %d without; VAR changed %.1f %% of the (head, row) pairs it "
      "may change\n",
      totals.right, samples.size(), totals.plain_right,
      totals.eligible > 0
          ? 100.0 * static_cast<double>(totals.selected) / static_cast<double>(totals.eligible)
          : 0.0);
  std::printf("pictures with the visual sink tokens outlined: %s\n", out_dir.string().c_str());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: demo MODEL.pt SAMPLES_DIR OUT_DIR\n");
    return 2;
  }
  try {
    answer_samples(argv[1], argv[2], argv[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "demo: error: %s\n", error.what());
    return 1;
  }
  return 0;
}
