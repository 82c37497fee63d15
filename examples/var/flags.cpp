#include "flags.h"

#include <ATen/Parallel.h>

#include <CLI/Validators.hpp>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "interrupt.h"
#include "libvar/error.h"
#include "libvar/threads.h"
#include "progress_bar.h"

namespace var_command {
namespace {

/// "auto", "cpu", "cuda" or "cuda:N"; CLI11 prints the text that it returns.
std::string check_device(const std::string& text) {
  const bool number = text.size() > 5 && text.starts_with("cuda:") &&
                      text.find_first_not_of("0123456789", 5) == std::string::npos;
  return text == "auto" || text == "cpu" || text == "cuda" || number
             ? ""
             : "expected auto, cpu, cuda or cuda:N, got " + text;
}

std::string check_temperature(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return *end == '\0' && std::isfinite(value) && value >= 0
             ? ""
             : "expected a number of at least 0, got " + text;
}

std::string check_top_p(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return *end == '\0' && value > 0 && value <= 1
             ? ""
             : "expected a number above 0 and at most 1, got " + text;
}

std::string check_positive(const std::string& text) {
  const bool digits = !text.empty() && text.find_first_not_of("0123456789") == std::string::npos &&
                      text.size() < 10;
  return digits && std::stoll(text) >= 1 ? ""
                                         : "expected a whole number of at least 1, got " + text;
}

std::string check_seed(const std::string& text) {
  std::uint64_t seed = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  const bool valid = error == std::errc() && end == text.data() + text.size();
  return valid ? "" : "expected a whole number from 0 to 18446744073709551615, got " + text;
}

/// True where the environment says how OpenMP runs threads: LibTorch's own choice, which knows it,
/// holds. Binding counts too: it leaves the first thread one core, and recommended_threads() would
/// see only that.
bool environment_sets_threads() {
  for (const char* name :
       {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"}) {
    const char* const value = std::getenv(name);
    if (value != nullptr && *value != '\0') return true;
  }
  return false;
}

}  // namespace

void CommonFlags::add(CLI::App& command, const std::string& dtype_help) {
  command.add_option("--device", device, "auto (CUDA where there is one), cpu, cuda or cuda:N")
      ->check(check_device)
      ->type_name("NAME");
  command.add_option("--dtype", dtype, dtype_help)
      ->check(CLI::IsMember({"auto", "fp32", "bf16", "fp16"}));
  command
      .add_option("--weights", weights,
                  "On a CPU: map the file (loaded at once), copy it into memory (more tokens per "
                  "second) or auto: copy where there is memory for it")
      ->check(CLI::IsMember({"auto", "copy", "map"}))
      ->capture_default_str();
  command
      .add_option(
          "--threads", threads,
          "Threads of the CPU; by default its physical cores, as far as affinity and CPU "
          "quota allow, unless OMP_NUM_THREADS, MKL_NUM_THREADS, OMP_PROC_BIND, OMP_PLACES or "
          "GOMP_CPU_AFFINITY is set")
      ->check(check_positive)
      ->type_name("N");
  command.add_option("--log-level", log_level, "What is said on stderr beside errors")
      ->check(CLI::IsMember({"error", "warning", "info"}));
}

void CommonFlags::apply() const {
  if (threads > 0) {
    at::set_num_threads(threads);
  } else if (!environment_sets_threads()) {
    at::set_num_threads(libvar::recommended_threads());
  }
  log("threads of the CPU: " + std::to_string(at::get_num_threads()));
}

void CommonFlags::warn(const std::string& text) const {
  if (log_level != "error") std::fprintf(stderr, "var: %s\n", text.c_str());
}

void CommonFlags::log(const std::string& text) const {
  if (log_level == "info") std::fprintf(stderr, "var: %s\n", text.c_str());
}

std::shared_ptr<const libvar::Model> load_model(const std::string& path, const CommonFlags& flags) {
  const InterruptScope interrupt;
  ProgressBar bar("loading");
  libvar::LoadOptions options;
  options.device = flags.device;
  options.dtype = flags.dtype;
  options.weights = flags.weights;
  options.on_progress = [&bar](std::int64_t done, std::int64_t total) {
    InterruptScope::check();
    bar.update(done, total);
  };
  auto model = libvar::Model::load(path, options);
  InterruptScope::check();
  return model;
}

void VarFlags::add(CLI::App& command) {
  const std::string group = "Visual Attention Redistribution";
  std::vector<CLI::Option*> settings;
  auto* off = command.add_flag("--no-var", no_var, "Answer without VAR")->group(group);
  settings.push_back(
      command.add_option("--preset", preset, "Settings of the paper by kind of task")
          ->check(CLI::IsMember({"general", "hallucination", "vision-centric", "reference"})));
  settings.push_back(
      command.add_option("--tau", tau, "Tokens with a sink score of at least tau are sinks")
          ->type_name("X"));
  settings.push_back(
      command
          .add_option("--rho", rho, "Least visual non-sink ratio of a head that is changed, 0 to 1")
          ->type_name("X"));
  settings.push_back(
      command.add_option("--p", p, "Share of the sinks' attention that is moved, 0 to 1")
          ->type_name("X"));
  settings.push_back(command
                         .add_option("--min-visual-mass", min_visual_mass,
                                     "Least visual attention of a row that is changed, 0 to 1")
                         ->type_name("X"));
  settings.push_back(
      command.add_option("--first-layer", first_layer, "First decoder layer that is changed")
          ->type_name("N"));
  for (CLI::Option* setting : settings) setting->group(group)->excludes(off);
}

void VarFlags::override_values(libvar::VarParams& params) const {
  if (tau) params.tau = *tau;
  if (rho) params.rho = *rho;
  if (p) params.p = *p;
  if (min_visual_mass) params.min_visual_mass = *min_visual_mass;
  if (first_layer) params.first_layer = first_layer;
}

void VarFlags::check() const {
  libvar::VarParams params;
  override_values(params);
  params.validate();
}

libvar::VarParams VarFlags::params(const libvar::Model& model) const {
  libvar::VarParams params = preset ? libvar::VarParams::preset(*preset) : model.var_defaults();
  override_values(params);
  params.enabled = !no_var && model.has_sink_dimensions();
  return params;
}

void GenerationFlags::add(CLI::App& command) {
  const std::string group = "Generation";
  command.add_option("--max-new-tokens", params.max_new_tokens, "Most tokens of an answer")
      ->capture_default_str()
      ->check(check_positive)
      ->type_name("N")
      ->group(group);
  command
      .add_option("--temperature", temperature,
                  "Draw tokens at this temperature; 0 takes the most likely one (default, unless "
                  "--top-p or --top-k is "
                  "given: then 1)")
      ->check(check_temperature)
      ->type_name("X")
      ->group(group);
  command
      .add_option("--top-p", top_p,
                  "Draw among the most likely tokens that make up this probability")
      ->check(check_top_p)
      ->type_name("X")
      ->group(group);
  command.add_option("--top-k", top_k, "Draw among the N most likely tokens")
      ->check(check_positive)
      ->type_name("N")
      ->group(group);
  command
      .add_option("--seed", params.seed,
                  "The same seed gives the same draw; means nothing without drawing")
      ->capture_default_str()
      ->check(check_seed)
      ->type_name("N")
      ->group(group);
  command.add_flag("--no-graph", no_graph, "On CUDA: don't capture decode steps; same answers")
      ->group(group);
  command
      .add_option(
          "--memory", memory_bytes,
          "Most memory for caches and activations, beside the weights (2GB, 512MB); what is "
          "available by default")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->type_name("SIZE")
      ->group(group);
}

libvar::SessionOptions GenerationFlags::session() const {
  libvar::SessionOptions options;
  options.cuda_graph = !no_graph;
  options.memory_bytes = static_cast<std::int64_t>(memory_bytes);
  return options;
}

libvar::GenerationParams GenerationFlags::generation() const {
  libvar::GenerationParams out = params;
  out.temperature = temperature.value_or(top_p || top_k ? 1.0 : 0.0);
  if (top_p) out.top_p = *top_p;
  if (top_k) out.top_k = *top_k;
  return out;
}

void PromptFlags::add(CLI::App& command) {
  const std::string group = "Prompt and images";
  std::vector<std::string> styles = libvar::prompt_styles();
  styles.insert(styles.begin(), "auto");
  command
      .add_option("--image", images,
                  "Picture file (PNG, JPEG, WebP, BMP); may be given several times")
      ->allow_extra_args(false)
      ->type_name("FILE")
      ->group(group);
  command.add_option("--system", system, "System text instead of the prompt style's own")
      ->type_name("TEXT")
      ->group(group);
  command.add_option("--prompt-style", prompt_style, "auto is the checkpoint's own")
      ->check(CLI::IsMember(styles))
      ->group(group);
  command.add_option("--image-mode", image_mode, "auto is the checkpoint's own")
      ->check(CLI::IsMember({"auto", "crop", "pad"}))
      ->group(group);
  command
      .add_option("--max-tiles", max_tiles,
                  "Most tiles of a picture, where a model cuts into tiles")
      ->check(check_positive)
      ->type_name("N")
      ->group(group);
  command
      .add_option("--min-pixels", min_pixels,
                  "Least pixels of a picture, where a model takes any size")
      ->check(check_positive)
      ->type_name("N")
      ->group(group);
  command.add_option("--max-pixels", max_pixels, "Most pixels of a picture, likewise")
      ->check(check_positive)
      ->type_name("N")
      ->group(group);
  command
      .add_option("--resize-order", resize_order,
                  "Order of a resize's two passes: that of Pillow before 13.0, or that of 13.0")
      ->capture_default_str()
      ->check(CLI::IsMember({"pillow12", "pillow13"}))
      ->group(group);
  command
      .add_flag("--no-exif-rotation", no_exif_rotation,
                "Leave pictures as their pixels lie in the file")
      ->group(group);
}

void PromptFlags::check() const {
  for (const std::string& image : images) check_image_file(image);
}

void PromptFlags::fill(libvar::Request& request) const {
  request.system = system;
  request.prompt_style = prompt_style;
  request.image_mode = image_mode;
  request.max_tiles = max_tiles;
  request.min_pixels = min_pixels;
  request.max_pixels = max_pixels;
  request.resize_order = resize_order;
  request.exif_rotation = !no_exif_rotation;
}

void check_image_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error))
    throw libvar::InputError("image " + path + ": no such file");
}

}  // namespace var_command
