#include "generate/decode_step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <utility>

#include "libvar/ops.h"

namespace libvar {
namespace {

/// Captured steps that are kept: one form for each size of the batch and step of the length.
constexpr std::size_t kMostCaptured = 32;

/// Keys that a captured step may see: a few forms for all lengths, at most a quarter too many
/// (256 below 1024).
std::int64_t most_keys(std::int64_t length, std::int64_t capacity) {
  std::int64_t unit = 256;
  while (unit * 8 <= length) unit *= 2;
  return std::min((length + unit - 1) / unit * unit, capacity);
}

/// First `count` columns of the last dimension.
at::Tensor first(const at::Tensor& tensor, std::int64_t count) {
  return tensor.narrow(-1, 0, count);
}

}  // namespace

VarParams shared_settings(const VarParams& var) {
  VarParams out;
  out.sources = var.sources;
  out.targets = var.targets;
  out.head_rule = var.head_rule;
  out.ratio_epsilon = var.ratio_epsilon;
  out.phi_epsilon = var.phi_epsilon;
  out.generated_sinks = var.generated_sinks;
  return out;
}

DecodeStep::DecodeStep(const Decoder& decoder, std::int64_t batch, bool graphs)
    : decoder_(&decoder), max_batch_(batch), graphs_(graphs), queue_(decoder.target().device) {
  const at::TensorOptions on_device = at::TensorOptions().device(decoder.target().device);
  const std::int64_t layers = decoder.config().num_layers;
  tokens_ = at::zeros({batch}, on_device.dtype(at::kLong));
  counters_ = at::zeros({3, batch}, on_device.dtype(at::kLong));
  lengths_ = at::zeros({batch}, on_device.dtype(at::kInt));
  params_ = at::zeros({layers, batch, 4}, on_device.dtype(at::kFloat));
  may_change_ = at::zeros({layers, batch}, on_device.dtype(at::kLong));
  selected_rows_ = at::zeros({layers, batch}, on_device.dtype(at::kLong));
  uniforms_ = at::zeros({batch, 0}, on_device.dtype(at::kDouble));
  choice_ = {at::zeros({batch}, on_device.dtype(at::kDouble)),
             at::zeros({batch}, on_device.dtype(at::kLong)),
             at::zeros({batch}, on_device.dtype(at::kDouble))};
  host_tokens_ = at::empty(
      {batch}, at::TensorOptions().dtype(at::kLong).pinned_memory(on_device.device().is_cuda()));
}

void DecodeStep::write_settings(const std::vector<StepSequence>& sequences) {
  const std::int64_t layers = decoder_->config().num_layers;
  const auto batch = static_cast<std::int64_t>(sequences.size());
  at::Tensor params = at::zeros({layers, batch, 4}),
             may_change = at::zeros({layers, batch}, at::kLong);
  auto values = params.accessor<float, 3>();
  auto changes = may_change.accessor<std::int64_t, 2>();
  plan_->rows.changes_layers.assign(static_cast<std::size_t>(layers), false);
  for (std::int64_t i = 0; i < batch; ++i) {
    const VarParams& var = sequences[static_cast<std::size_t>(i)].var;
    if (var.enabled) {
      plan_->settings = shared_settings(var);
      plan_->settings.enabled = true;
    }
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const bool changed = decoder_->may_change(layer, var);
      const float entries[4] = {var.tau, var.rho, changed ? var.p : 0.0F, var.min_visual_mass};
      for (std::int64_t k = 0; k < 4; ++k) values[layer][i][k] = entries[k];
      changes[layer][i] = changed ? 1 : 0;
      if (changed) plan_->rows.changes_layers[static_cast<std::size_t>(layer)] = true;
    }
  }
  plan_->rows.params.copy_(params);
  plan_->rows.may_change.copy_(may_change);
}

void DecodeStep::write_draws(const std::vector<StepSequence>& sequences, std::int64_t most) {
  if (uniforms_.size(1) < most) {
    uniforms_ = at::zeros({max_batch_, most}, uniforms_.options());
    captured_.remove_if([](const Captured& one) { return one.method != ChoiceMethod::kGreedy; });
  }
  at::Tensor numbers =
      at::zeros({static_cast<std::int64_t>(sequences.size()), uniforms_.size(1)}, at::kDouble);
  auto values = numbers.accessor<double, 2>();
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    const StepSequence& sequence = sequences[static_cast<std::size_t>(i)];
    for (std::int64_t n = 0; n < values.size(1); ++n)
      values[i][n] = uniform_draw(sequence.generation.seed, static_cast<std::uint64_t>(n));
  }
  uniforms_.narrow(0, 0, values.size(0)).copy_(numbers);
}

void DecodeStep::begin(const std::vector<StepSequence>& sequences, const KvCache& cache) {
  const auto batch = static_cast<std::int64_t>(sequences.size());
  if (std::vector<std::int64_t> layout = cache.layout(); layout != layout_) {
    captured_.clear();
    layout_ = std::move(layout);
  }
  plan_.emplace(Plan{cache, batch, {}, {}, ChoiceMethod::kGreedy});
  // What is stored of new tokens depends on the settings of those whose VAR is off, too.
  plan_->settings = shared_settings(sequences.front().var);
  plan_->settings.enabled = false;
  plan_->rows.places = first(counters_[0], batch);
  plan_->rows.lengths = first(lengths_, batch);
  plan_->rows.params = params_.narrow(1, 0, batch);
  plan_->rows.may_change = first(may_change_, batch);
  std::vector<std::int64_t> tokens, places, positions, draws;
  std::vector<GenerationParams> generation;
  std::int64_t most_tokens = 0;
  for (const StepSequence& sequence : sequences) {
    tokens.push_back(sequence.token);
    places.push_back(sequence.place);
    positions.push_back(sequence.position);
    draws.push_back(static_cast<std::int64_t>(sequence.draws));
    generation.push_back(sequence.generation);
    most_tokens = std::max(most_tokens, sequence.generation.max_new_tokens);
    plan_->method = std::max(plan_->method, choice_method(sequence.generation));
  }
  longest_ = *std::max_element(places.begin(), places.end());
  queue_.run([&] {
    write_settings(sequences);
    first(tokens_, batch).copy_(at::tensor(tokens, at::kLong));
    std::int64_t row = 0;
    for (const auto* values : {&places, &positions, &draws})
      first(counters_[row++], batch).copy_(at::tensor(*values, at::kLong));
    first(lengths_, batch).copy_(at::tensor(places, at::kLong).add(1));
    selected_rows_.zero_();
    if (plan_->method == ChoiceMethod::kGreedy) return;
    write_draws(sequences, std::min(most_tokens, decoder_->config().max_positions) + 1);
    const ChoiceSettings settings = choice_settings(generation, decoder_->config().vocab_size);
    first(choice_.temperature, batch).copy_(settings.temperature);
    first(choice_.top_k, batch).copy_(settings.top_k);
    first(choice_.top_p, batch).copy_(settings.top_p);
  });
}

at::Tensor DecodeStep::compute(const Plan& plan) {
  const WeightsAreReady weights_are_ready;
  const std::int64_t batch = plan.batch;
  KvCache cache = plan.cache;
  DecoderPass pass;
  pass.sequences = &plan.rows;
  pass.positions = first(counters_[1], batch).expand({decoder_->config().position_axes(), batch});
  pass.var = plan.settings;
  pass.generated = true;
  pass.selected_rows = first(selected_rows_, batch);
  const at::Tensor normed =
      (*decoder_)(decoder_->embed(first(tokens_, batch)).unsqueeze(1), pass, cache);
  at::Tensor logits = decoder_->logits(normed).squeeze(1);
  const ChoiceSettings choice = {first(choice_.temperature, batch), first(choice_.top_k, batch),
                                 first(choice_.top_p, batch)};
  at::Tensor uniforms;
  if (plan.method != ChoiceMethod::kGreedy) {
    const at::Tensor draws = first(counters_[2], batch).unsqueeze(1);
    uniforms = uniforms_.narrow(0, 0, batch).gather(1, draws).squeeze(1);
  }
  first(tokens_, batch).copy_(choose_tokens(logits, choice, uniforms, plan.method));
  counters_.add_(1);
  lengths_.add_(1);
  return logits;
}

DecodeStep::Captured& DecodeStep::find(const Plan& plan) {
  const auto found = std::find_if(captured_.begin(), captured_.end(), [&](const Captured& one) {
    return one.batch == plan.batch && one.most_keys == plan.rows.longest &&
           one.method == plan.method && one.settings == plan.settings &&
           one.changes_layers == plan.rows.changes_layers;
  });
  if (found != captured_.end()) {
    captured_.splice(captured_.begin(), captured_, found);
    return *found;
  }
  if (captured_.size() == kMostCaptured) captured_.pop_back();
  return captured_.emplace_front(Captured{plan.settings, plan.method, plan.batch, plan.rows.longest,
                                          plan.rows.changes_layers, at::Tensor(), nullptr});
}

void DecodeStep::run_captured(const Plan& plan) {
  Captured& step = find(plan);
  if (!step.logits.defined()) {  // the first time shows what a capture must not meet first
    logits_ = step.logits = compute(plan);
    return;
  }
  if (!step.graph) {
    const auto other = std::find_if(captured_.begin(), captured_.end(),
                                    [](const Captured& one) { return one.graph != nullptr; });
    step.graph = std::make_unique<DeviceGraph>(
        decoder_->target().device, [this, plan, logits = &step.logits] { *logits = compute(plan); },
        other != captured_.end() ? other->graph.get() : nullptr);
  }
  step.graph->replay();
  logits_ = step.logits;
}

const std::vector<std::int64_t>& DecodeStep::run() {
  ++longest_;
  const std::int64_t batch = plan_->batch;
  plan_->rows.longest = graphs_ ? most_keys(longest_, plan_->cache.capacity()) : longest_;
  queue_.run([&] {
    if (graphs_) {
      run_captured(*plan_);
    } else {
      logits_ = compute(*plan_);
    }
    first(host_tokens_, batch).copy_(first(tokens_, batch), /*non_blocking=*/true);
  });
  queue_.wait();
  const auto* tokens = host_tokens_.const_data_ptr<std::int64_t>();
  chosen_.assign(tokens, tokens + batch);
  return chosen_;
}

at::Tensor DecodeStep::take_selected_rows() {
  at::Tensor result = first(selected_rows_, plan_->batch).clone();
  selected_rows_.zero_();
  return result;
}

void DecodeStep::end() {
  queue_.wait();
  plan_.reset();
}

}  // namespace libvar
