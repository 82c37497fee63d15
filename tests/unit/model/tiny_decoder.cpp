#include "unit/model/tiny_decoder.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tril.h>
#include <ATen/ops/zeros.h>

#include <array>
#include <cmath>
#include <random>
#include <string>

namespace libvar::testing {
namespace {

using Spans = std::vector<std::pair<std::int64_t, std::int64_t>>;

constexpr double kMassive = 200.0;

/// The reference: one sequence, float64.
class Eager {
 public:
  Eager(const TinyDecoder& decoder, const Spans& spans, const VarParams& var,
        std::int64_t num_prompt)
      : decoder_(decoder), spans_(spans), var_(var), num_prompt_(num_prompt) {}

  EagerResult run(at::Tensor x) {
    const DecoderConfig& config = decoder_.config;
    std::vector<at::Tensor> phis;
    for (std::int64_t i = 0; i < config.num_layers; ++i) {
      prefix_ = "model.layers." + std::to_string(i) + ".";
      phis.push_back(phi(x));
      x = x + attention(norm(x, prefix_ + "input_layernorm.weight"), i, phis.back());
      const at::Tensor y = norm(x, prefix_ + "post_attention_layernorm.weight");
      const at::Tensor gate = linear(y, prefix_ + "mlp.gate_proj");
      x = x + linear(gate * at::sigmoid(gate) * linear(y, prefix_ + "mlp.up_proj"),
                     prefix_ + "mlp.down_proj");
    }
    const std::string head = config.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    result_.logits = linear(norm(x, "model.norm.weight"), head);
    result_.phi = at::stack(phis);
    return result_;
  }

 private:
  at::Tensor weight(const std::string& name) const {
    return decoder_.tensors.at(name).to(at::kDouble);
  }

  at::Tensor linear(const at::Tensor& x, const std::string& name) const {
    const at::Tensor y = at::matmul(x, weight(name + ".weight").t());
    return decoder_.tensors.count(name + ".bias") != 0 ? y + weight(name + ".bias") : y;
  }

  at::Tensor norm(const at::Tensor& x, const std::string& name) const {
    return x * at::rsqrt(x.pow(2).mean(-1, true) + decoder_.config.rms_norm_eps) * weight(name);
  }

  at::Tensor phi(const at::Tensor& x) const {
    at::Tensor largest = x.select(1, decoder_.sink_dims[0]).abs();
    for (const std::int64_t d : decoder_.sink_dims) largest = largest.maximum(x.select(1, d).abs());
    const double eps = var_.phi_epsilon ? *var_.phi_epsilon : decoder_.config.rms_norm_eps;
    at::Tensor result = largest / (x.pow(2).mean(-1) + eps).sqrt();
    if (!var_.generated_sinks) result.slice(0, num_prompt_).zero_();
    return result;
  }

  at::Tensor rotated(
      const at::Tensor& heads) const {  // [H, N, Dh], pair (i, i + Dh / 2) turned by its angle
    const std::int64_t rows = heads.size(1), half = decoder_.config.head_dim / 2;
    at::Tensor result = heads.clone();
    const auto from = heads.accessor<double, 3>();
    auto to = result.accessor<double, 3>();
    for (std::int64_t n = 0; n < rows; ++n) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(n) * std::pow(decoder_.config.rope_theta,
                                              -static_cast<double>(i) / static_cast<double>(half));
        for (std::int64_t h = 0; h < heads.size(0); ++h) {
          const double a = from[h][n][i], b = from[h][n][i + half];
          to[h][n][i] = a * std::cos(angle) - b * std::sin(angle);
          to[h][n][i + half] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
    return result;
  }

  at::Tensor attention(const at::Tensor& x, std::int64_t layer, const at::Tensor& phi) {
    const DecoderConfig& config = decoder_.config;
    const std::int64_t rows = x.size(0);
    const auto heads = [&](const char* name, std::int64_t count) {
      return linear(x, prefix_ + "self_attn." + name)
          .view({rows, count, config.head_dim})
          .transpose(0, 1);
    };
    const std::int64_t group = config.num_heads / config.num_kv_heads;
    const at::Tensor q = rotated(heads("q_proj", config.num_heads));
    const at::Tensor k = rotated(heads("k_proj", config.num_kv_heads)).repeat_interleave(group, 0);
    const at::Tensor v = heads("v_proj", config.num_kv_heads).repeat_interleave(group, 0);
    at::Tensor scores =
        at::matmul(q, k.transpose(1, 2)) / std::sqrt(static_cast<double>(config.head_dim));
    const at::Tensor allowed = at::ones({rows, rows}, at::kBool).tril();
    scores = scores.masked_fill(allowed.logical_not(), -INFINITY);
    at::Tensor probs = at::softmax(scores, -1).contiguous();
    redistribute(probs, layer, phi);
    const at::Tensor mixed =
        at::matmul(probs, v).transpose(0, 1).reshape({rows, config.num_heads * config.head_dim});
    return linear(mixed, prefix_ + "self_attn.o_proj");
  }

  bool is_visual(std::int64_t position) const {
    for (const auto& [begin, end] : spans_) {
      if (position >= begin && position < end) return true;
    }
    return false;
  }

  void redistribute(at::Tensor& probs, std::int64_t layer, const at::Tensor& phi) {
    result_.selected_rows.push_back(0);
    result_.eligible_rows.push_back(0);
    const bool last = layer + 1 == decoder_.config.num_layers;
    if (!var_.enabled || layer < *var_.first_layer || (last && !var_.include_last_layer)) return;
    auto a = probs.accessor<double, 3>();
    const auto scores = phi.accessor<double, 1>();
    for (std::int64_t h = 0; h < a.size(0); ++h) {
      for (std::int64_t row = 0; row < a.size(1); ++row) {
        std::array<double, 4> mass{};
        std::vector<std::size_t> classes;
        int visual_keys = 0, visual_sinks = 0;
        for (std::int64_t key = 0; key <= row; ++key) {
          const bool visual = is_visual(key), sink = scores[key] >= var_.tau;
          classes.push_back((visual ? 0u : 2u) + (sink ? 0u : 1u));
          mass[classes.back()] += a[h][row][key];
          visual_keys += visual;
          visual_sinks += visual && sink;
        }
        if (is_visual(row) || visual_sinks == 0) continue;
        ++result_.eligible_rows.back();
        if (!selects(mass, visual_keys)) continue;
        ++result_.selected_rows.back();
        double source = 0, target = 0;
        for (std::size_t c = 0; c < 4; ++c) {
          source += (var_.sources >> c) & 1u ? mass[c] : 0.0;
          target += (var_.targets >> c) & 1u ? mass[c] : 0.0;
        }
        for (std::int64_t key = 0; key <= row; ++key) {
          const std::size_t c = classes[static_cast<std::size_t>(key)];
          if ((var_.sources >> c) & 1u) a[h][row][key] *= 1.0 - static_cast<double>(var_.p);
          if ((var_.targets >> c) & 1u)
            a[h][row][key] *= 1.0 + static_cast<double>(var_.p) * source / target;
        }
      }
    }
  }

  bool selects(const std::array<double, 4>& mass, int visual_keys) const {
    double target = 0;
    for (std::size_t c = 0; c < 4; ++c) target += (var_.targets >> c) & 1u ? mass[c] : 0.0;
    if (!(target > 0) || var_.head_rule == HeadRule::kNone) return false;
    if (var_.head_rule == HeadRule::kAll) return true;
    const double visual = mass[0] + mass[1];
    const double ratio =
        var_.ratio_epsilon > 0
            ? 1.0 - mass[0] / (visual + static_cast<double>(var_.ratio_epsilon) * visual_keys)
            : mass[1] / visual;
    return mass[1] > 0 && visual >= var_.min_visual_mass && ratio >= var_.rho;
  }

  const TinyDecoder& decoder_;
  const Spans& spans_;
  const VarParams& var_;
  std::int64_t num_prompt_;
  std::string prefix_;
  EagerResult result_;
};

}  // namespace

at::Tensor random_tensor(at::IntArrayRef sizes, std::uint64_t seed, double scale) {
  std::mt19937_64 engine(seed);
  const auto uniform = [&] { return (static_cast<double>(engine() >> 11) + 0.5) * 0x1.0p-53; };
  at::Tensor result = at::empty(sizes, at::kFloat);
  float* values = result.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < result.numel(); ++i) {
    const double radius = std::sqrt(-2.0 * std::log(uniform())),
                 angle = 6.283185307179586 * uniform();
    values[i] = static_cast<float>(scale * radius * std::cos(angle));
  }
  return result;
}

TinyDecoder make_tiny_decoder(const TinyDecoderOptions& options) {
  TinyDecoder result;
  DecoderConfig& config = result.config;
  config.hidden_size = 448;
  config.intermediate_size = 160;
  config.num_layers = 4;
  config.num_heads = options.heads;
  config.num_kv_heads = options.kv_heads;
  config.head_dim = options.head_dim;
  config.vocab_size = 50;
  config.max_positions = 128;
  config.rms_norm_eps = 1e-5;
  config.rope_theta = 10000.0;
  config.qkv_bias = config.output_bias = config.mlp_bias = options.biases;
  config.tie_word_embeddings = options.tied;
  result.sink_dims = {137, 301};
  std::uint64_t seed = 1;
  const auto add = [&](const std::string& name, std::int64_t out, std::int64_t in, double gain,
                       bool bias) {
    result.tensors[name + ".weight"] =
        random_tensor({out, in}, ++seed, gain / std::sqrt(static_cast<double>(in)));
    if (bias) result.tensors[name + ".bias"] = random_tensor({out}, ++seed, 0.3);
  };
  const auto add_norm = [&](const std::string& name) {
    result.tensors[name + ".weight"] = random_tensor({config.hidden_size}, ++seed, 0.2) + 1.0;
  };
  const std::int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  add("model.embed_tokens", config.vocab_size, hidden, std::sqrt(static_cast<double>(hidden)),
      false);
  for (std::int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add_norm(layer + "input_layernorm");
    add_norm(layer + "post_attention_layernorm");
    add(layer + "self_attn.q_proj", config.num_heads * config.head_dim, hidden, 1.0,
        config.qkv_bias);
    add(layer + "self_attn.k_proj", config.num_kv_heads * config.head_dim, hidden, 1.0,
        config.qkv_bias);
    add(layer + "self_attn.v_proj", config.num_kv_heads * config.head_dim, hidden, 1.0,
        config.qkv_bias);
    add(layer + "self_attn.o_proj", hidden, config.num_heads * config.head_dim, 0.3,
        config.output_bias);
    add(layer + "mlp.gate_proj", inner, hidden, 1.0, config.mlp_bias);
    add(layer + "mlp.up_proj", inner, hidden, 1.0, config.mlp_bias);
    add(layer + "mlp.down_proj", hidden, inner, 0.3, config.mlp_bias);
  }
  add_norm("model.norm");
  if (!options.tied) add("lm_head", config.vocab_size, hidden, 1.0, false);
  return result;
}

TinyPrompt make_tiny_prompt(const TinyDecoder& decoder, int num_images, std::int64_t image_rows,
                            std::int64_t text_rows) {
  TinyPrompt result;
  std::int64_t rows = 1 + text_rows;
  for (int i = 0; i < num_images; ++i) {
    result.visual_spans.emplace_back(rows, rows + image_rows);
    rows += image_rows + text_rows;
  }
  result.embeddings = random_tensor({1, rows, decoder.config.hidden_size}, 777);
  const auto plant = [&](std::int64_t row, std::size_t dim) {
    result.embeddings.select(1, row)
        .select(1, decoder.sink_dims[dim])
        .fill_(dim == 0 ? kMassive : -kMassive);
  };
  plant(0, 0);
  for (const auto& [begin, end] : result.visual_spans) plant(begin + 1, 1);
  return result;
}

EagerResult run_eager(const TinyDecoder& decoder, const at::Tensor& embeddings,
                      const Spans& visual_spans, const VarParams& var, std::int64_t num_prompt) {
  return Eager(decoder, visual_spans, var, num_prompt).run(embeddings.select(0, 0).to(at::kDouble));
}

}  // namespace libvar::testing
