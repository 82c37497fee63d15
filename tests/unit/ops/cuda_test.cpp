// The ops on a GPU against the same ops on the CPU, which ops' own tests hold to the
// double-precision oracles.

#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <vector>

#include "catch.h"
#include "cuda_support.h"
#include "libvar/numerics.h"
#include "libvar/ops.h"

namespace {

using libvar::test::cut;
using libvar::test::have_gpu;
using libvar::test::kDtypes;
using libvar::test::largest_difference;
using libvar::test::make_tokens;
using libvar::test::on_gpu;
using libvar::test::rule_with;
using libvar::test::Tokens;
using libvar::test::unit_of;

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
  // Tensor cores take softmax weights in the dtype.
  const double largest = in.value.nan_to_num(0.0).abs().max().item<double>();
  const double bound =
      2 * libvar::kAttentionBound * 6.0 +
      unit_of(in.query.scalar_type()) * (cpu.abs().max().item<double>() + largest / 2);
  CHECK(largest_difference(gpu.to(at::kCPU) * same, cpu * same) <= bound);
}

}  // namespace

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

TEST_CASE("CUDA and CPU agree on attention in the shapes of every kernel", "[attention][cuda]") {
  if (!have_gpu()) return;

  struct Shape {
    std::int64_t batch, heads, kv_heads, rows, keys, head_dim;
  };

  const std::vector<Shape> shapes = {
      {1, 32, 32, 1, 640, 128},   {2, 4, 4, 1, 2000, 64},   {1, 4, 2, 1, 129, 256},
      {1, 28, 4, 1, 640, 128},    {2, 28, 4, 1, 4100, 128}, {1, 8, 8, 7, 1023, 80},
      {1, 4, 4, 16, 257, 96},     {1, 28, 4, 3, 511, 128},  {1, 32, 32, 64, 640, 128},
      {2, 14, 2, 33, 1700, 64},   {1, 2, 2, 300, 513, 80},  {1, 4, 1, 65, 65, 96},
      {1, 16, 16, 1024, 640, 64},  // more partial states than one launch may leave
  };
  for (const at::ScalarType dtype : kDtypes) {
    for (const Shape& s : shapes) {
      INFO(dtype << ", heads " << s.heads << "/" << s.kv_heads << ", rows " << s.rows << ", K "
                 << s.keys << ", Dh " << s.head_dim);
      auto in = make_attention(s.batch, s.heads, s.kv_heads, s.rows, s.keys, s.head_dim, dtype);
      compare_attention(in, rule_with(0.8f, 0.6f, 0.2f));
      // A cache that is not full, whatever lies in the rest of it.
      const std::int64_t length = s.keys - s.keys / 5;
      if (length < s.rows) continue;
      in.kv_lengths = at::full({s.batch}, length, at::kInt);
      for (at::Tensor* cache : {&in.key, &in.value}) cut(*cache, 2, length, s.keys).fill_(NAN);
      compare_attention(in, rule_with(0.8f, 0.6f, 0.2f));
    }
  }
}

TEST_CASE("NaN stays in the rows that see it on CUDA", "[attention][cuda]") {
  if (!have_gpu()) return;
  for (const std::int64_t rows : {2, 12, 70}) {
    const auto in = on_gpu(make_attention(1, 2, 2, rows, 300, 128, at::kBFloat16));
    const at::Tensor clean = libvar::attention(in, rule_with(0.8f, 0.6f, 0.2f));
    const std::int64_t first = rows / 2;  // the first row that sees it
    in.value[0][0][300 - rows + first][7].fill_(NAN);
    const at::Tensor out = libvar::attention(in, rule_with(0.8f, 0.6f, 0.2f));
    CHECK(at::equal(out[0][1], clean[0][1]));
    CHECK(at::equal(cut(out[0][0], 0, 0, first), cut(clean[0][0], 0, 0, first)));
    CHECK(at::isnan(cut(out[0][0], 0, first, rows)).sum().item<std::int64_t>() == rows - first);
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
