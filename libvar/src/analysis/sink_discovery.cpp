#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <array>

#include "analysis/massive_dimensions.h"
#include "generate/conversation.h"
#include "generate/prepare_prompt.h"
#include "libvar/analysis.h"
#include "libvar/error.h"
#include "libvar/ops.h"
#include "libvar/version.h"
#include "loaded_model.h"
#include "resource_errors.h"

namespace libvar {
namespace {

constexpr std::array<const char*, 5> kTextPrompts = {
    "What is the capital of France?", "List three things that are red.",
    "How many legs does a spider have?", "Is the sun a star?", "Write one sentence about the sea."};
constexpr const char* kImageQuestion = "Describe the image.";

/// One request for each prompt that is run, in the order of kTextPrompts and the images.
std::vector<Request> make_requests(const Request& request) {
  Request base = request;
  base.images.clear();
  base.raw_prompt.reset();
  std::vector<Request> out;
  for (const char* question : kTextPrompts) {
    out.push_back(base);
    out.back().question = question;
  }
  base.question = kImageQuestion;
  for (const ImageSource& image : request.images) {
    out.push_back(base);
    out.back().images = {image};
  }
  return out;
}

class Discovery {
 public:
  Discovery(const LoadedModel& model, float tau) : model_(model) {
    result_.tau = tau;
    var_.enabled = false;
    var_.first_layer = 0;
  }

  SinkDiscovery run(const Request& request, const ProgressCallback& on_progress) {
    const std::vector<Request> requests = make_requests(request);
    result_.text_prompts = kTextPrompts.size();
    result_.image_prompts = static_cast<std::int64_t>(request.images.size());
    // Each prompt runs twice: phi needs the dimensions, and keeping the hidden states of every
    // layer instead would take as much memory as many prompts.
    const auto total = static_cast<std::int64_t>(2 * requests.size());
    std::int64_t done = 0;
    const auto run_all = [&](const auto& observe) {
      for (const Request& one : requests) {
        if (on_progress) on_progress(done, total);
        run_prompt(one, observe);
        ++done;
      }
    };
    MassiveDimensions massive(model_.config.decoder.num_layers);
    run_all([&](std::int64_t layer, const at::Tensor& hidden, const Sequence&) {
      massive.add(layer, hidden);
    });
    result_.middle_layers = massive.middle_layers();
    result_.dimensions = massive.found();
    result_.source = describe();
    if (!result_.dimensions.empty()) {
      start_phi();
      run_all([&](std::int64_t layer, const at::Tensor& hidden, const Sequence& prompt) {
        add_phi(layer, hidden, prompt);
      });
      finish_phi(static_cast<std::int64_t>(requests.size()));
    }
    if (on_progress) on_progress(total, total);
    return std::move(result_);
  }

 private:
  template <typename Observe>
  void run_prompt(const Request& request, const Observe& observe) {
    const PreparedPrompt prompt = prepare_prompt(model_, request, /*first_turn=*/true);
    const auto rows = static_cast<std::int64_t>(prompt.sequence.ids.size());
    if (rows > model_.config.decoder.max_positions) {
      throw InputError(c10::str("prompt: ", rows, " tokens, the context is ",
                                model_.config.decoder.max_positions, " tokens long"));
    }
    Conversation conversation(model_.decoder, /*prefill_chunk=*/0);
    PassHooks hooks;
    hooks.layer = [&](std::int64_t layer, const at::Tensor& hidden) {
      observe(layer, hidden, prompt.sequence);
    };
    conversation.set_hooks(std::move(hooks));
    conversation.prefill(prompt.sequence, model_.encode_images(prompt.images), var_,
                         /*new_tokens=*/0);
  }

  void start_phi() {
    const auto layers = static_cast<std::size_t>(model_.config.decoder.num_layers);
    sink_dims_ = at::tensor(result_.dims(), at::kLong).to(model_.target.device);
    result_.first_token_phi.assign(layers, 0.0);
    if (result_.image_prompts > 0) result_.visual_sink_share.assign(layers, 0.0);
    visual_tokens_.assign(layers, 0);
  }

  void add_phi(std::int64_t layer, const at::Tensor& hidden, const Sequence& prompt) {
    const auto at = static_cast<std::size_t>(layer);
    const at::Tensor phi =
        sink_scores(hidden, sink_dims_, model_.config.decoder.rms_norm_eps).select(0, 0);
    result_.first_token_phi[at] += phi[0].item<double>();
    for (const auto& [begin, end] : prompt.visual_spans) {
      result_.visual_sink_share[at] +=
          phi.slice(0, begin, end).ge(result_.tau).sum().item<double>();
      visual_tokens_[at] += end - begin;
    }
  }

  void finish_phi(std::int64_t prompts) {
    for (double& phi : result_.first_token_phi) phi /= static_cast<double>(prompts);
    for (std::size_t i = 0; i < result_.visual_sink_share.size(); ++i)
      result_.visual_sink_share[i] /= static_cast<double>(visual_tokens_[i]);
  }

  std::string describe() const {
    const auto [begin, end] = result_.middle_layers;
    return c10::str("found by libvar ", version(), " on ", result_.text_prompts,
                    " prompts of text and ", result_.image_prompts,
                    " with an image: in the first token at least 1000 times the layer's median "
                    "magnitude and among its 8 largest, in most of layers ",
                    begin, " to ", end - 1);
  }

  const LoadedModel& model_;
  VarParams var_;
  SinkDiscovery result_;
  at::Tensor sink_dims_;                     // [S] int64
  std::vector<std::int64_t> visual_tokens_;  // per layer
};

}  // namespace

std::vector<std::int64_t> SinkDiscovery::dims() const {
  std::vector<std::int64_t> out;
  for (const FoundSinkDimension& found : dimensions) out.push_back(found.dimension);
  return out;
}

SinkDiscovery discover_sink_dimensions(const Model& model, const Request& request, float tau,
                                       const ProgressCallback& on_progress) {
  const c10::InferenceMode inference;
  return with_resource_errors(
      "sink discovery", [&] { return Discovery(model.loaded(), tau).run(request, on_progress); });
}

}  // namespace libvar
