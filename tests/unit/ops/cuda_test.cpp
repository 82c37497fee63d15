// The ops on a GPU against the same ops on the CPU, which ops' own tests hold to the
// double-precision oracles.

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "catch.h"
#include "libvar/numerics.h"
#include "libvar/ops.h"

namespace {

/// Whether the test can run. Without a GPU it says so once; ctest then counts the entry as skipped,
/// unless LIBVAR_REQUIRE_CUDA=1 makes it a failure.
bool have_gpu() {
  static const bool has_cuda = at::hasCUDA();
  const char* required = std::getenv("LIBVAR_REQUIRE_CUDA");
  if (has_cuda) return true;
  if (required != nullptr && std::string(required) == "1") {
    FAIL("no CUDA device was found, and LIBVAR_REQUIRE_CUDA=1 asks for one");
  }
  static const bool said = [] {
    std::cerr << "cuda tests skipped: no CUDA device was found (LIBVAR_REQUIRE_CUDA=1 makes this a "
                 "failure)\n";
    return true;
  }();
  (void)said;
  return false;
}

const std::vector<at::ScalarType> kDtypes = {at::kFloat, at::kHalf, at::kBFloat16};

at::Tensor on_gpu(const at::Tensor& tensor) {
  return tensor.to(at::kCUDA);
}

std::optional<at::Tensor> on_gpu(const std::optional<at::Tensor>& tensor) {
  return tensor ? std::optional<at::Tensor>(on_gpu(*tensor)) : std::nullopt;
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0.0;
  return (a.to(at::kCPU, at::kDouble) - b.to(at::kCPU, at::kDouble)).abs().max().item<double>();
}

/// Both devices round the same float32 result, give or take its error: one unit in the last place
/// of the largest value.
double unit_of(at::ScalarType dtype) {
  return dtype == at::kHalf ? 0x1p-10 : dtype == at::kBFloat16 ? 0x1p-7 : 0.0;
}

at::Tensor cut(const at::Tensor& tensor, std::int64_t dim, std::int64_t begin, std::int64_t end) {
  return tensor.slice(dim, begin, end);
}

struct Tokens {
  at::Tensor sink_scores;
  at::Tensor visual_mask;
};

/// Text, an image, text; BOS and every 9th patch are sinks.
Tokens make_tokens(std::int64_t batch, std::int64_t num_keys) {
  const at::Tensor position = at::arange(num_keys);
  const at::Tensor visual = at::bitwise_and(position >= num_keys / 8, position < num_keys * 3 / 4);
  const at::Tensor sink = at::where(visual, (position % 9).eq(4), position.eq(0));
  const at::Tensor phi = at::where(sink, at::full({num_keys}, 30.0f), at::full({num_keys}, 1.0f));
  return {phi.expand({batch, num_keys}).contiguous(),
          visual.expand({batch, num_keys}).contiguous()};
}

libvar::AttentionInputs make_attention(std::int64_t batch, std::int64_t heads,
                                       std::int64_t kv_heads, std::int64_t rows, std::int64_t keys,
                                       std::int64_t head_dim, at::ScalarType dtype) {
  const Tokens tokens = make_tokens(batch, keys);
  libvar::AttentionInputs in;
  // As the decoder has them: [B, Q, H, Dh] in memory, a cache with heads outside.
  in.query = at::randn({batch, rows, heads, head_dim}).to(dtype).transpose(1, 2);
  in.key = at::randn({batch, kv_heads, keys, head_dim}).to(dtype);
  in.value = at::randn({batch, kv_heads, keys, head_dim}).to(dtype);
  in.sink_scores = tokens.sink_scores;
  in.visual_mask = tokens.visual_mask;
  in.scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  return in;
}

libvar::AttentionInputs on_gpu(const libvar::AttentionInputs& in) {
  return {
      on_gpu(in.query),       on_gpu(in.key),      on_gpu(in.value),      on_gpu(in.sink_scores),
      on_gpu(in.visual_mask), on_gpu(in.row_mask), on_gpu(in.kv_lengths), in.scale};
}

libvar::AttentionTrace make_trace(const libvar::AttentionInputs& in) {
  const auto sizes = in.query.sizes();
  const auto options = in.query.options();
  return {at::zeros({sizes[0], sizes[1], sizes[2]}, options.dtype(at::kBool)),
          at::zeros({sizes[0], sizes[1], sizes[2], 4}, options.dtype(at::kFloat))};
}

void compare_attention(const libvar::AttentionInputs& in, const libvar::RedistributionRule& rule,
                       const std::optional<at::Tensor>& params = std::nullopt) {
  const libvar::AttentionInputs gpu_in = on_gpu(in);
  libvar::AttentionTrace cpu_trace = make_trace(in);
  libvar::AttentionTrace gpu_trace = make_trace(gpu_in);
  const at::Tensor cpu = libvar::attention(in, rule, params, &cpu_trace);
  const at::Tensor gpu = libvar::attention(gpu_in, rule, on_gpu(params), &gpu_trace);
  REQUIRE(gpu.device().is_cuda());
  REQUIRE(gpu.sizes() == cpu.sizes());
  REQUIRE(gpu.scalar_type() == cpu.scalar_type());
  CHECK(!(largest_difference(gpu_trace.class_mass, cpu_trace.class_mass) > 2e-5));
  const at::Tensor gpu_selected = gpu_trace.selected.to(at::kCPU);
  const at::Tensor flips = gpu_selected.ne(cpu_trace.selected);
  CHECK(flips.sum().item<std::int64_t>() <= flips.numel() / 100);
  const at::Tensor same = flips.logical_not().unsqueeze(-1);
  const double bound = 2 * libvar::kAttentionBound * 6.0 +
                       unit_of(in.query.scalar_type()) * cpu.abs().max().item<double>();
  CHECK(largest_difference(gpu.to(at::kCPU) * same, cpu * same) <= bound);
}

libvar::RedistributionRule rule_with(float rho, float p, float min_visual_mass) {
  libvar::RedistributionRule rule;
  rule.rho = rho;
  rule.p = p;
  rule.min_visual_mass = min_visual_mass;
  return rule;
}

}  // namespace

TEST_CASE("CUDA and CPU agree on sink scores and norms", "[norms][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t size : {1, 31, 32, 33, 576, 1023, 4096, 5120}) {
      INFO(dtype << ", D " << size);
      const at::Tensor dims = at::tensor(std::vector<std::int64_t>{size / 2, size - 1});
      const at::Tensor hidden = cut(at::randn({2, 9, size}), 1, 2, 8).to(dtype);
      const at::Tensor weight = at::randn({size}).to(dtype);
      const at::Tensor phi = libvar::sink_scores(hidden, dims);
      CHECK(largest_difference(libvar::sink_scores(on_gpu(hidden), on_gpu(dims)), phi) <=
            1e-5 * phi.max().item<double>());
      const auto [cpu_normed, cpu_phi] = libvar::rms_norm_sink_scores(hidden, weight, dims);
      const auto [gpu_normed, gpu_phi] =
          libvar::rms_norm_sink_scores(on_gpu(hidden), on_gpu(weight), on_gpu(dims));
      CHECK(largest_difference(gpu_phi, cpu_phi) <= 1e-5 * phi.max().item<double>());
      const double bound = 1e-5 + 2 * unit_of(dtype);
      CHECK(largest_difference(gpu_normed, cpu_normed) <=
            bound * std::fmax(1.0, cpu_normed.abs().max().item<double>()));
      // The residual is a slice of a larger tensor: changed in place, nothing around it.
      const at::Tensor delta = at::randn({2, 6, size}).to(dtype);
      at::Tensor cpu_memory = at::randn({2, 9, size}).to(dtype);
      at::Tensor gpu_memory = on_gpu(cpu_memory);
      at::Tensor cpu_residual = cut(cpu_memory, 1, 2, 8);
      at::Tensor gpu_residual = cut(gpu_memory, 1, 2, 8);
      const auto [cpu_sum, cpu_sum_phi] =
          libvar::add_rms_norm_sink_scores(cpu_residual, delta, weight, dims);
      const auto [gpu_sum, gpu_sum_phi] = libvar::add_rms_norm_sink_scores(
          gpu_residual, on_gpu(delta), on_gpu(weight), on_gpu(dims));
      CHECK(at::equal(gpu_memory.to(at::kCPU), cpu_memory));
      CHECK(largest_difference(gpu_sum_phi, cpu_sum_phi) <=
            1e-5 * cpu_sum_phi.max().item<double>());
      CHECK(largest_difference(gpu_sum, cpu_sum) <=
            bound * std::fmax(1.0, cpu_sum.abs().max().item<double>()));
    }
  }
}

TEST_CASE("CUDA and CPU agree on redistribute", "[redistribute][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t keys : {1, 31, 32, 33, 103, 576, 640, 1023, 60000}) {
      INFO(dtype << ", K " << keys);
      const Tokens tokens = make_tokens(2, keys);
      // Sharper and flatter rows, so that both outcomes are met.
      const at::Tensor temperature = at::rand({2, 3, 4, 1}) * 4.0;
      const at::Tensor probs = at::softmax(at::randn({2, 3, 4, keys}) * temperature, -1).to(dtype);
      const auto rule = rule_with(0.85f, 0.6f, 0.2f);
      const at::Tensor cpu =
          libvar::redistribute(probs, tokens.sink_scores, tokens.visual_mask, std::nullopt, rule);
      const at::Tensor gpu = libvar::redistribute(on_gpu(probs), on_gpu(tokens.sink_scores),
                                                  on_gpu(tokens.visual_mask), std::nullopt, rule);
      CHECK(largest_difference(gpu, cpu) <= 2 * libvar::kRedistributeBound + unit_of(dtype));
      at::Tensor in_place = on_gpu(probs).transpose(1, 2).contiguous().transpose(1, 2);
      libvar::redistribute_(in_place, on_gpu(tokens.sink_scores), on_gpu(tokens.visual_mask),
                            std::nullopt, rule);
      CHECK(at::equal(in_place, gpu));
      const at::Tensor no_row = at::zeros({2, 4}, at::kBool);
      CHECK(at::equal(libvar::redistribute(on_gpu(probs), on_gpu(tokens.sink_scores),
                                           on_gpu(tokens.visual_mask), on_gpu(no_row), rule)
                          .to(at::kCPU),
                      probs));
    }
  }
}

TEST_CASE("CUDA and CPU agree on attention", "[attention][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t keys : {1, 31, 32, 33, 103, 640}) {
      for (const std::int64_t head_dim : {33, 64, 80, 128, 256}) {
        INFO(dtype << ", K " << keys << ", Dh " << head_dim);
        const auto rows = std::min<std::int64_t>(keys, 21);
        compare_attention(make_attention(2, 4, 2, rows, keys, head_dim, dtype),
                          rule_with(0.8f, 0.6f, 0.2f));
      }
    }
  }
}

TEST_CASE("CUDA attention takes lengths, row masks and parameters per sequence",
          "[attention][cuda]") {
  if (!have_gpu()) return;
  auto in = make_attention(3, 6, 3, 10, 101, 64, at::kFloat);
  in.kv_lengths = at::tensor(std::vector<std::int32_t>{101, 60, 4});
  in.row_mask = at::rand({3, 10}) < 0.7;
  for (int b = 0; b < 3; ++b) {
    const auto length = (*in.kv_lengths)[b].item<std::int64_t>();
    for (at::Tensor* cache : {&in.key, &in.value}) cut((*cache)[b], 1, length, 101).fill_(NAN);
    cut(in.sink_scores[b], 0, length, 101).fill_(1000.0f);
  }
  const at::Tensor params = at::tensor(std::vector<float>{20.0f, 0.8f, 0.6f, 0.2f, 20.0f, 0.5f,
                                                          1.0f, 0.0f, 40.0f, 0.5f, 0.5f, 0.1f})
                                .view({3, 4});
  compare_attention(in, rule_with(0.8f, 0.6f, 0.2f));
  compare_attention(in, rule_with(0.8f, 0.6f, 0.2f), params);
  auto rule = rule_with(0.5f, 0.7f, 0.1f);
  rule.head_rule = libvar::HeadRule::kAll;
  rule.targets = libvar::class_set(libvar::TokenClass::kTextNonSink);
  compare_attention(in, rule);
  // Lengths can't be refused on the device: they are clamped.
  auto gpu_in = on_gpu(in);
  gpu_in.kv_lengths = on_gpu(at::tensor(std::vector<std::int32_t>{500, 60, -3}));
  const at::Tensor out = libvar::attention(gpu_in, rule).to(at::kCPU);
  CHECK(at::equal(out[0], libvar::attention(on_gpu(in), rule).to(at::kCPU)[0]));
  CHECK(out[2].abs().max().item<float>() == 0.0f);
}

TEST_CASE("CUDA attention with p = 0 is attention without redistribution, bit for bit",
          "[attention][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    const auto in = on_gpu(make_attention(2, 4, 2, 30, 200, 128, dtype));
    libvar::AttentionTrace trace = make_trace(in);
    const at::Tensor zero =
        libvar::attention(in, rule_with(0.3f, 0.0f, 0.1f), std::nullopt, &trace);
    CHECK(trace.selected.sum().item<std::int64_t>() > 10);
    libvar::RedistributionRule off;
    off.head_rule = libvar::HeadRule::kNone;
    CHECK(at::equal(zero, libvar::attention(in, off)));
  }
}

TEST_CASE("a captured CUDA graph reads new lengths and parameters", "[attention][cuda]") {
  if (!have_gpu()) return;
  auto in = on_gpu(make_attention(1, 4, 2, 1, 200, 64, at::kBFloat16));
  in.kv_lengths = on_gpu(at::tensor(std::vector<std::int32_t>{150}));
  const at::Tensor params =
      on_gpu(at::tensor(std::vector<float>{20.0f, 0.5f, 0.6f, 0.1f}).view({1, 4}));
  libvar::attention(in, {}, params);  // loads the kernel before the capture
  at::cuda::CUDAGraph graph;
  at::Tensor out;
  {
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    graph.capture_begin();
    out = libvar::attention(in, {}, params);
    graph.capture_end();
  }
  for (const auto& [length, p] : {std::pair{150, 0.6f}, {170, 0.0f}, {200, 1.0f}}) {
    in.kv_lengths->fill_(length);
    params[0][2].fill_(p);
    graph.replay();
    CHECK(at::equal(out, libvar::attention(in, {}, params)));
  }
}

TEST_CASE("CUDA ops refuse what they cannot do", "[cuda]") {
  if (!have_gpu()) return;
  CHECK_THROWS_WITH(libvar::attention(on_gpu(make_attention(1, 1, 1, 1, 4, 257, at::kFloat))),
                    Catch::Matchers::Contains("attention: expected a head size of at most 256"));
  auto mixed = on_gpu(make_attention(1, 1, 1, 1, 4, 8, at::kFloat));
  mixed.sink_scores = mixed.sink_scores.to(at::kCPU);
  CHECK_THROWS_AS(libvar::attention(mixed), c10::ValueError);
  const at::Tensor hidden = at::ones({2, 8}, at::TensorOptions(at::kCUDA).dtype(at::kDouble));
  CHECK_THROWS_AS(libvar::sink_scores(hidden, on_gpu(at::zeros({1}, at::kLong))), c10::TypeError);
}
