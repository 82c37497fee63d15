#include "generate/sampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "libvar/error.h"
#include "libvar/ops.h"

namespace libvar {
namespace {

/// Probabilities [B, V] of what top_k and top_p keep, 0 elsewhere; not normalised.
at::Tensor keep_most_likely(const at::Tensor& scaled, const ChoiceSettings& settings) {
  const auto [sorted, ids] =
      at::sort(scaled, /*stable=*/true, /*dim=*/-1, /*descending=*/true);  // [B, V]
  const at::Tensor kth = sorted.gather(-1, settings.top_k.unsqueeze(1).sub(1));
  const at::Tensor candidates =
      sorted.masked_fill(sorted < kth, -std::numeric_limits<double>::infinity());
  const at::Tensor probabilities = at::softmax(candidates, -1);
  const at::Tensor before = at::cumsum(probabilities, -1).sub(probabilities);
  // The first is kept whatever top_p is, and top_p 1 keeps all of them.
  const at::Tensor kept = before.lt(settings.top_p.unsqueeze(1))
                              .logical_or(settings.top_p.unsqueeze(1).ge(1.0))
                              .logical_or(before.le(0.0));
  return at::zeros_like(probabilities)
      .scatter(-1, ids, probabilities.masked_fill(kept.logical_not(), 0.0));
}

}  // namespace

void validate(const GenerationParams& params) {
  if (params.max_new_tokens < 1) {
    throw ConfigError(
        c10::str("GenerationParams: max_new_tokens must be >= 1, got ", params.max_new_tokens));
  }
  if (!(params.temperature >= 0.0 && std::isfinite(params.temperature))) {
    throw ConfigError(c10::str("GenerationParams: temperature must be finite and >= 0, got ",
                               params.temperature));
  }
  if (params.top_k < 0)
    throw ConfigError(c10::str("GenerationParams: top_k must be >= 0, got ", params.top_k));
  if (!(params.top_p > 0.0 && params.top_p <= 1.0)) {
    throw ConfigError(c10::str("GenerationParams: top_p must be in (0, 1], got ", params.top_p));
  }
}

double uniform_draw(std::uint64_t seed, std::uint64_t n) {
  const auto mix = [](std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  };
  // The seed is mixed first, or neighbouring seeds would give the same stream one step apart.
  const std::uint64_t z = mix(mix(seed + 0x9E3779B97F4A7C15u) + (n + 1) * 0x9E3779B97F4A7C15u);
  return static_cast<double>(z >> 11) * 0x1.0p-53;
}

ChoiceMethod choice_method(const GenerationParams& params) {
  if (params.temperature == 0.0) return ChoiceMethod::kGreedy;
  return params.top_k > 0 || params.top_p < 1.0 ? ChoiceMethod::kDrawFromBest : ChoiceMethod::kDraw;
}

ChoiceSettings choice_settings(const std::vector<GenerationParams>& params,
                               std::int64_t vocabulary) {
  std::vector<double> temperature, top_p;
  std::vector<std::int64_t> top_k;
  for (const GenerationParams& one : params) {
    temperature.push_back(one.temperature);
    top_k.push_back(one.top_k > 0 ? std::min(one.top_k, vocabulary) : vocabulary);
    top_p.push_back(one.top_p);
  }
  return {at::tensor(temperature, at::kDouble), at::tensor(top_k, at::kLong),
          at::tensor(top_p, at::kDouble)};
}

at::Tensor choose_tokens(const at::Tensor& logits, const ChoiceSettings& settings,
                         const at::Tensor& uniforms, ChoiceMethod method) {
  const at::Tensor best = greedy_tokens(logits);
  if (method == ChoiceMethod::kGreedy) return best;
  const at::Tensor is_greedy = settings.temperature.eq(0.0);
  const at::Tensor scaled =
      logits.to(at::kDouble)
          .div(at::where(is_greedy, at::ones_like(settings.temperature), settings.temperature)
                   .unsqueeze(1));
  const at::Tensor probabilities =
      method == ChoiceMethod::kDraw ? at::softmax(scaled, -1) : keep_most_likely(scaled, settings);
  // A scan of a device may round a little differently at each place: only tokens that are possible
  // count, and where the last sum falls short of the number, the last of them. NaN leaves none.
  const at::Tensor sums = at::cumsum(probabilities, -1);
  const at::Tensor possible = probabilities.gt(0.0);
  const at::Tensor reached =
      possible.logical_and(sums.gt(sums.select(-1, -1).mul(uniforms).unsqueeze(1)));
  const std::int64_t vocabulary = logits.size(-1);
  const at::Tensor ids = at::arange(vocabulary, uniforms.options().dtype(at::kLong));
  const at::Tensor first = at::where(reached, ids, vocabulary).amin(-1);
  const at::Tensor last = at::where(possible, ids, -1).amax(-1);
  const at::Tensor drawn = at::where(first.lt(vocabulary), first, last);
  return at::where(is_greedy, best, drawn);
}

std::int64_t choose_token(const at::Tensor& logits, const GenerationParams& params,
                          std::uint64_t draw) {
  ChoiceSettings settings = choice_settings({params}, logits.size(-1));
  for (at::Tensor* tensor : {&settings.temperature, &settings.top_k, &settings.top_p})
    *tensor = tensor->to(logits.device());
  const at::Tensor uniform =
      at::tensor({uniform_draw(params.seed, draw)}, at::kDouble).to(logits.device());
  return choose_tokens(logits.unsqueeze(0), settings, uniform, choice_method(params))
      .item<std::int64_t>();
}

}  // namespace libvar
