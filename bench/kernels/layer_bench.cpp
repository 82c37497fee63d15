// What a decoder layer launches for one new token, on a GPU's list: whole, without one of its
// parts, and its products alone beside a copy that moves as many bytes. Weights and caches of
// several layers take turns, as in a decoder.

#include <ATen/ATen.h>

#include <cmath>
#include <memory>
#include <optional>

#include "kernels/cases.h"
#include "libvar/ops.h"

namespace libvar::bench {
namespace {

struct LayerShape {
  std::int64_t hidden = 4096, intermediate = 11008, heads = 32, kv_heads = 32, head_dim = 128,
               keys = 640;

  [[nodiscard]] std::int64_t projected() const { return (heads + 2 * kv_heads) * head_dim; }

  /// Weights and cache that a step reads, in bfloat16.
  [[nodiscard]] double bytes() const {
    const std::int64_t weights = hidden * (projected() + heads * head_dim + 3 * intermediate);
    return 2.0 * static_cast<double>(weights + 2 * kv_heads * keys * head_dim);
  }
};

/// What is launched. What is left out leaves its result of before.
struct Parts {
  bool norms = true, rotary = true, attention = true;
};

struct LayerWeights {
  at::Tensor qkv, out, gate_up, down, key_cache, value_cache, sink_scores;
};

struct LayerWork {
  LayerShape shape;
  std::vector<LayerWeights> layers;
  at::Tensor residual, nothing, norm, dims, no_dims, cos, sin, places, lengths, params, visual;
  at::Tensor normed, phi, query, mixed;  ///< for what is left out
  at::Tensor copy, expected;

  /// @return  what the layer adds to the residual stream
  at::Tensor run(std::size_t set, const Parts& parts, bool starts_early) {
    const LayerShape& s = shape;
    LayerWeights& layer = layers[set];
    std::optional<WeightsAreReady> ready;
    if (starts_early) ready.emplace();
    const auto normalise = [&](at::Tensor& stream, const at::Tensor& sink_dims) {
      // A sum with zeros, so that the stream stays what it is from call to call.
      return parts.norms ? add_rms_norm_sink_scores(stream, nothing, norm, sink_dims)
                         : std::make_tuple(normed, phi);
    };
    const auto [first, sink_score] = normalise(residual, dims);
    const at::Tensor projected = skinny_linear(first, layer.qkv);
    const auto heads = [&](std::int64_t begin, std::int64_t count) {
      return projected.narrow(-1, begin * s.head_dim, count * s.head_dim)
          .unflatten(-1, {count, s.head_dim})
          .transpose(1, 2);
    };
    AttentionInputs in;
    in.query = !parts.rotary ? query
                             : rotate_and_cache(
                                   {heads(0, s.heads), heads(s.heads, s.kv_heads),
                                    heads(s.heads + s.kv_heads, s.kv_heads), sink_score, cos, sin},
                                   places, layer.key_cache, layer.value_cache, layer.sink_scores);
    in.key = layer.key_cache;
    in.value = layer.value_cache;
    in.sink_scores = layer.sink_scores;
    in.visual_mask = visual;
    in.kv_lengths = lengths;
    in.scale = 1.0 / std::sqrt(static_cast<double>(s.head_dim));
    const at::Tensor attended =
        parts.attention ? attention(in, {}, params).transpose(1, 2).flatten(2) : mixed;
    at::Tensor delta =
        skinny_linear(attended, layer.out);  // as the stream: the output depends on it
    const at::Tensor second = std::get<0>(normalise(delta, no_dims));
    const std::int64_t inner = s.intermediate;
    return skinny_linear(skinny_swiglu(second, layer.gate_up.narrow(0, 0, inner),
                                       layer.gate_up.narrow(0, inner, inner)),
                         layer.down);
  }
};

LayerWeights random_layer(const LayerShape& s, const at::Device& device) {
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  const auto matrix = [&](std::int64_t rows, std::int64_t columns) {
    return at::randn({rows, columns}, floats)
        .div_(std::sqrt(static_cast<double>(columns)))
        .to(at::kBFloat16);
  };
  const auto cache = [&] {
    return at::randn({1, s.kv_heads, s.keys, s.head_dim}, floats).to(at::kBFloat16);
  };
  at::Tensor sink_scores = at::rand({1, s.keys}, floats) * 15.0;
  sink_scores.slice(1, 0, std::nullopt, std::max<std::int64_t>(s.keys / 8, 1)).fill_(30.0);
  return {matrix(s.projected(), s.hidden),
          matrix(s.hidden, s.heads * s.head_dim),
          matrix(2 * s.intermediate, s.hidden),
          matrix(s.hidden, s.intermediate),
          cache(),
          cache(),
          sink_scores};
}

std::shared_ptr<LayerWork> make_work(const LayerShape& s, std::size_t sets,
                                     const at::Device& device) {
  auto work = std::make_shared<LayerWork>();
  const auto floats = at::TensorOptions(device).dtype(at::kFloat);
  const auto halves = floats.dtype(at::kBFloat16);
  work->shape = s;
  for (std::size_t i = 0; i < sets; ++i) work->layers.push_back(random_layer(s, device));
  work->residual = at::randn({1, 1, s.hidden}, floats).to(at::kBFloat16);
  work->nothing = at::zeros({1, 1, s.hidden}, halves);
  work->norm = at::ones({s.hidden}, halves);
  work->dims = at::tensor({s.hidden / 3, s.hidden / 2}, at::kLong).to(device);
  work->no_dims = at::empty({0}, floats.dtype(at::kLong));
  const at::Tensor angle = at::rand({1, 1, s.head_dim}, floats);
  work->cos = angle.cos().to(at::kBFloat16);
  work->sin = angle.sin().to(at::kBFloat16);
  work->places = at::full({1}, s.keys - 1, floats.dtype(at::kLong));
  work->lengths = at::full({1}, s.keys, floats.dtype(at::kInt));
  work->params = at::tensor({20.0F, 0.8F, 0.6F, 0.2F}).view({1, 4}).to(device);
  work->visual = at::zeros({1, s.keys}, floats.dtype(at::kBool));
  work->visual.narrow(1, s.keys / 16, s.keys * 7 / 8).fill_(true);
  std::tie(work->normed, work->phi) = rms_norm_sink_scores(work->residual, work->norm, work->dims);
  work->query = at::randn({1, s.heads, 1, s.head_dim}, floats).to(at::kBFloat16);
  work->mixed = at::randn({1, 1, s.heads * s.head_dim}, floats).to(at::kBFloat16);
  work->expected = work->run(0, {}, /*starts_early=*/false).clone();
  return work;
}

Workload prepare(const Options& options, const LayerShape& s) {
  Workload result;
  result.sets = options.tiny ? 2 : cold_sets(options.device, static_cast<std::size_t>(s.bytes()));
  const std::shared_ptr<LayerWork> work = make_work(s, result.sets, options.device);
  const auto add = [&](const std::string& name, const Parts& parts, bool starts_early) {
    const bool is_whole = parts.norms && parts.rotary && parts.attention;
    std::function<double(const at::Tensor&)> error;
    if (is_whole)  // the same bits, however the kernels start
      error = [work](const at::Tensor& out) { return at::equal(out, work->expected) ? 0.0 : 2.0; };
    result.variants.push_back({name,
                               [work, parts, starts_early](std::size_t set) {
                                 return work->run(set, parts, starts_early);
                               },
                               error, is_whole});
  };
  add("libvar", {}, true);
  add("libvar_again", {}, true);
  add("no_early_starts", {}, false);
  add("without_norms", {.norms = false}, true);
  add("without_rotary", {.rotary = false}, true);
  add("without_attention", {.attention = false}, true);
  add("products", {false, false, false}, true);
  const auto half = static_cast<std::int64_t>(s.bytes() / 4.0);  // elements read, and written
  work->copy = at::empty({half}, at::TensorOptions(options.device).dtype(at::kShort));
  const at::Tensor from = at::randint(0, 1 << 14, {half}, work->copy.options());
  result.variants.push_back(
      {"copy", [work, from](std::size_t) { return at::add_out(work->copy, from, 0); }, {}});
  result.data = work;
  result.facts["bytes"] = s.bytes();
  const bool has_bar = options.grid == "cuda" && !options.tiny;
  result.ratios = {{"copy", "libvar", {}, {}, has_bar ? std::optional(0.80) : std::nullopt},
                   {"no_early_starts", "libvar", {}, {}, {}},
                   {"copy", "products", {}, {}, {}}};
  return result;
}

}  // namespace

void register_layer(const Options& options) {
  if (options.grid != "cuda") return;
  constexpr int kRounds = 25;
  for (const std::int64_t keys : {640, 4096}) {
    for (LayerShape s : {LayerShape{4096, 11008, 32, 32}, LayerShape{3584, 18944, 28, 4},
                         LayerShape{4096, 14336, 32, 8}}) {
      s.keys = keys;
      const std::string name = "layer/" + std::string(options.device.is_cuda() ? "cuda/" : "cpu/") +
                               "bf16/heads:" + std::to_string(s.heads) +
                               "/kv_heads:" + std::to_string(s.kv_heads) +
                               "/keys:" + std::to_string(s.keys);
      if (options.tiny) {
        s.hidden = 128;
        s.intermediate = 96;
        s.heads = 2 * (s.heads / s.kv_heads);
        s.kv_heads = 2;
        s.head_dim = 64;
        s.keys = std::min<std::int64_t>(s.keys, 150);
      }
      register_case(options, {name, kRounds, [options, s] { return prepare(options, s); }});
    }
  }
}

}  // namespace libvar::bench
