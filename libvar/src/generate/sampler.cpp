#include "generate/sampler.h"

#include <c10/util/StringUtil.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "libvar/error.h"

namespace libvar {
namespace {

struct Candidate {
  std::int64_t id;
  double logit;
  double probability = 0;
};

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/// Leaves the k largest and those that equal the k-th.
void keep_top_k(std::vector<Candidate>& candidates, std::int64_t k) {
  if (k <= 0 || k >= static_cast<std::int64_t>(candidates.size())) return;
  const auto kth = candidates.begin() + (k - 1);
  std::nth_element(candidates.begin(), kth, candidates.end(), more_likely);
  const double least = kth->logit;
  std::erase_if(candidates,
                [least](const Candidate& candidate) { return candidate.logit < least; });
}

/// Softmax over the candidates. @return false where it is not defined: NaN, or no finite logit
bool set_probabilities(std::vector<Candidate>& candidates) {
  double largest = -std::numeric_limits<double>::infinity();
  for (const Candidate& candidate : candidates) largest = std::max(largest, candidate.logit);
  double sum = 0;
  for (Candidate& candidate : candidates) {
    candidate.probability = std::exp(candidate.logit - largest);
    sum += candidate.probability;
  }
  for (Candidate& candidate : candidates) candidate.probability /= sum;
  return std::isfinite(sum) && sum > 0;
}

/// Leaves the smallest set of most likely candidates whose probabilities reach top_p; at least one.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  if (top_p >= 1.0) return;
  std::sort(candidates.begin(), candidates.end(), more_likely);
  double sum = 0;
  std::size_t kept = 0;
  while (kept < candidates.size() && (kept == 0 || sum < top_p))
    sum += candidates[kept++].probability;
  candidates.resize(kept);
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

std::int64_t Sampler::operator()(const at::Tensor& logits) {
  if (params_.temperature == 0.0) return logits.argmax().item<std::int64_t>();
  const at::Tensor host = logits.to(at::kCPU, at::kFloat).contiguous();
  const float* values = host.const_data_ptr<float>();
  std::vector<Candidate> candidates(static_cast<std::size_t>(host.numel()));
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    candidates[i].id = static_cast<std::int64_t>(i);
    if (std::isnan(values[i])) throw Error("sampler: the logits are not finite");
    candidates[i].logit = values[i] / params_.temperature;
  }
  keep_top_k(candidates, params_.top_k);
  if (!set_probabilities(candidates)) throw Error("sampler: the logits are not finite");
  keep_top_p(candidates, params_.top_p);
  // In the order of ids, so that the draw does not depend on how ties were sorted.
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double total = 0;
  for (const Candidate& candidate : candidates) total += candidate.probability;
  double rest = uniform_draw(params_.seed, draws_++) * total;
  for (const Candidate& candidate : candidates) {
    rest -= candidate.probability;
    if (rest < 0) return candidate.id;
  }
  const auto possible =
      std::find_if(candidates.rbegin(), candidates.rend(),
                   [](const Candidate& candidate) { return candidate.probability > 0; });
  return possible->id;
}

}  // namespace libvar
