#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <map>
#include <utility>

#include "analysis/row_attention.h"
#include "generate/prepare_prompt.h"
#include "image/token_boxes.h"
#include "libvar/error.h"
#include "libvar/inspection.h"
#include "libvar/session.h"
#include "loaded_model.h"

namespace libvar {
namespace {

/// [rows of a pass, ...] of each layer and pass.
using Parts = std::vector<std::vector<at::Tensor>>;

/// [layers, all rows, ...]; the last dimension padded to `keys` where that is above 0.
at::Tensor joined(const Parts& parts, std::int64_t keys = 0) {
  std::vector<at::Tensor> layers;
  for (const auto& passes : parts) {
    std::vector<at::Tensor> rows;
    for (const at::Tensor& pass : passes) {
      const std::int64_t missing = keys > 0 ? keys - pass.size(-1) : 0;
      rows.push_back(missing > 0 ? at::constant_pad_nd(pass, {0, missing}) : pass);
    }
    layers.push_back(at::cat(rows));
  }
  return at::stack(layers);
}

void check_ascending(const char* what, const std::vector<std::int64_t>& values, std::int64_t end) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    const bool rises = i == 0 || values[i] > values[i - 1];
    if (values[i] < 0 || values[i] >= end || !rises) {
      throw ConfigError(c10::str("InspectOptions: ", what, ": expected ascending numbers in [0, ",
                                 end - 1, "], found ", values[i]));
    }
  }
}

/// Collects what the passes of one answer show.
class Inspector {
 public:
  Inspector(const LoadedModel& model, const Request& request, const InspectOptions& options)
      : model_(model), options_(options), tau_(request.var.tau) {
    const PreparedPrompt prepared = prepare_prompt(model, request, /*first_turn=*/true);
    if (prepared.images.empty())
      throw InputError("inspect: expected at least one image, found none");
    result_.tokens = prepared.sequence.ids;
    check_ascending("head_layers", options.head_layers, num_layers());
    check_ascending("magnitude_positions", options.magnitude_positions,
                    static_cast<std::int64_t>(result_.tokens.size()));
    std::vector<at::Tensor> ranges;
    for (std::size_t i = 0; i < prepared.images.size(); ++i) {
      InspectedImage image;
      image.height = prepared.picture_sizes[i].height;
      image.width = prepared.picture_sizes[i].width;
      image.positions = prepared.sequence.visual_spans[i];
      image.boxes = token_boxes(prepared.picture_sizes[i], prepared.images[i], prepared.processor,
                                model.config.vision);
      ranges.push_back(at::arange(image.positions.first, image.positions.second, at::kLong));
      result_.images.push_back(std::move(image));
    }
    visual_positions_ = at::cat(ranges).to(model.target.device);
    const auto layers = static_cast<std::size_t>(num_layers());
    for (Parts* parts : {&attention_, &redistributed_, &mass_, &ratio_, &selected_})
      parts->resize(layers);
    for (Parts* parts : {&head_attention_, &head_redistributed_})
      parts->resize(options.head_layers.size());
    for (std::size_t i = 0; options.contributions && i < layers; ++i) {
      contribution_.push_back(
          at::zeros({model.config.decoder.num_heads, visual_positions_.numel()}));
    }
  }

  /// They refer to this object.
  PassHooks hooks() {
    PassHooks out;
    out.attention = [this](const AttentionView& view) { see(view); };
    if (!options_.magnitude_positions.empty()) {
      out.layer = [this](std::int64_t, const at::Tensor& hidden) { see_hidden(hidden); };
    }
    return out;
  }

  Inspection finish(Answer answer) {
    Inspection& out = result_;
    const std::size_t generated = static_cast<std::size_t>(length_) - out.tokens.size();
    out.tokens.insert(out.tokens.end(), answer.tokens.begin(),
                      answer.tokens.begin() + static_cast<std::ptrdiff_t>(generated));
    out.answer = std::move(answer);
    add_pieces();
    out.sink_scores = joined(sink_scores_).contiguous();
    out.attention = joined(attention_, length_);
    out.redistributed = joined(redistributed_, length_);
    const auto by_head = [](const Parts& parts) {
      return joined(parts).transpose(1, 2).contiguous();  // [L, R, H] -> [L, H, R]
    };
    out.visual_mass = by_head(mass_);
    out.visual_ratio = by_head(ratio_);
    out.selected = by_head(selected_);
    out.head_layers = options_.head_layers;
    if (!out.head_layers.empty()) {
      out.head_attention = joined(head_attention_, length_).transpose(1, 2).contiguous();
      out.head_redistributed = joined(head_redistributed_, length_).transpose(1, 2).contiguous();
    }
    if (options_.contributions)
      out.contribution = at::stack(contribution_) / static_cast<double>(out.rows.size());
    if (!magnitudes_.empty()) out.magnitudes = at::stack(magnitudes_);
    return std::move(out);
  }

 private:
  std::int64_t num_layers() const { return model_.config.decoder.num_layers; }

  bool is_visual(std::int64_t position) const {
    return std::any_of(
        result_.images.begin(), result_.images.end(), [&](const InspectedImage& image) {
          return position >= image.positions.first && position < image.positions.second;
        });
  }

  /// The rows of a pass; they are the same in all its layers.
  void start_pass(const AttentionView& view) {
    length_ = view.past + view.query.size(2);
    rows_.clear();
    for (std::int64_t position = std::max(view.past, result_.images.front().positions.first);
         position < length_; ++position) {
      if (!is_visual(position)) rows_.push_back(position);
    }
    result_.rows.insert(result_.rows.end(), rows_.begin(), rows_.end());
  }

  void see(const AttentionView& view) {
    if (view.layer == 0) start_pass(view);
    const auto layer = static_cast<std::size_t>(view.layer);
    const at::Tensor phi = view.cache.sink_scores(view.layer, length_);
    sink_scores_.resize(static_cast<std::size_t>(num_layers()));
    sink_scores_[layer].push_back(phi[0].slice(0, view.past).to(at::kCPU));
    if (rows_.empty()) return;
    const at::Tensor probs = row_probabilities(view, rows_);  // [1, H, r, K]
    const at::Tensor after = redistribute_rows(view, rows_, probs);
    attention_[layer].push_back(probs[0].mean(0).to(at::kCPU));
    redistributed_[layer].push_back(after[0].mean(0).to(at::kCPU));
    const at::Tensor visual = view.cache.visual_mask(length_)[0], sink = (phi >= tau_)[0];
    const at::Tensor sinks = (probs[0] * (visual & sink)).sum(-1).transpose(0, 1).to(at::kCPU);
    const at::Tensor others = (probs[0] * (visual & ~sink)).sum(-1).transpose(0, 1).to(at::kCPU);
    mass_[layer].push_back(sinks + others);
    ratio_[layer].push_back(others / (sinks + others));
    selected_[layer].push_back((after != probs)[0].any(-1).transpose(0, 1).to(at::kCPU));
    keep_heads(view.layer, probs, after);
    if (!options_.contributions) return;
    const at::Tensor alpha = probs[0].index_select(-1, visual_positions_).sum(1);  // [H, V]
    if (!value_norms_.contains(view.layer))
      value_norms_.emplace(view.layer, value_norms(view, visual_positions_));
    contribution_[layer].add_((alpha * value_norms_.at(view.layer)).to(at::kCPU));
  }

  void keep_heads(std::int64_t layer, const at::Tensor& probs, const at::Tensor& after) {
    const auto found = std::find(options_.head_layers.begin(), options_.head_layers.end(), layer);
    if (found == options_.head_layers.end()) return;
    const auto at = static_cast<std::size_t>(found - options_.head_layers.begin());
    head_attention_[at].push_back(probs[0].transpose(0, 1).to(at::kCPU));
    head_redistributed_[at].push_back(after[0].transpose(0, 1).to(at::kCPU));
  }

  void see_hidden(const at::Tensor& hidden) {
    if (static_cast<std::int64_t>(magnitudes_.size()) == num_layers()) return;  // not the prompt
    const at::Tensor positions =
        at::tensor(options_.magnitude_positions, at::kLong).to(hidden.device());
    magnitudes_.push_back(hidden[0].index_select(0, positions).abs().to(at::kCPU, at::kFloat));
  }

  /// A character that several tokens make up belongs to the last of them.
  void add_pieces() {
    StreamDecoder decoder(*model_.tokenizer);
    for (std::size_t i = 0; i < result_.tokens.size(); ++i) {
      const bool visual = is_visual(static_cast<std::int64_t>(i));
      result_.pieces.push_back(visual ? std::string() : decoder.push(result_.tokens[i]));
    }
    result_.pieces.back() += decoder.finish();
  }

  const LoadedModel& model_;
  const InspectOptions& options_;
  float tau_;
  Inspection result_;
  at::Tensor visual_positions_;     // [V] int64
  std::int64_t length_ = 0;         // positions fed
  std::vector<std::int64_t> rows_;  // of the pass
  Parts sink_scores_, attention_, redistributed_, mass_, ratio_, selected_;
  Parts head_attention_, head_redistributed_;
  std::vector<at::Tensor> contribution_;  // per layer [H, V], summed over the rows
  std::map<std::int64_t, at::Tensor> value_norms_;
  std::vector<at::Tensor> magnitudes_;  // per layer [positions, D]
};

}  // namespace

Inspection inspect(const std::shared_ptr<const Model>& model, const Request& request,
                   const InspectOptions& options) {
  const c10::InferenceMode inference;
  Inspector inspector(model->loaded(), request, options);
  Session session(model);
  session.set_hooks(inspector.hooks());
  return inspector.finish(session.ask(request));
}

}  // namespace libvar
