// The ops but attention on a GPU against the same ops on the CPU, over the sizes where one kernel
// takes over from another, and over alignments.

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

std::int64_t vector_elements(at::ScalarType dtype) {
  return 16 / static_cast<std::int64_t>(c10::elementSize(dtype));
}

/// The sizes, and those around the borders given in 16-byte vectors.
std::vector<std::int64_t> with_borders(std::vector<std::int64_t> sizes, at::ScalarType dtype,
                                       const std::vector<std::int64_t>& borders) {
  for (const std::int64_t vectors : borders) {
    for (const std::int64_t beyond : {-1, 0, 1})
      sizes.push_back(vectors * vector_elements(dtype) + beyond);
  }
  return sizes;
}

void compare_norms(at::ScalarType dtype, std::int64_t size) {
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
  const auto [gpu_sum, gpu_sum_phi] =
      libvar::add_rms_norm_sink_scores(gpu_residual, on_gpu(delta), on_gpu(weight), on_gpu(dims));
  CHECK(at::equal(gpu_memory.to(at::kCPU), cpu_memory));
  CHECK(largest_difference(gpu_sum_phi, cpu_sum_phi) <= 1e-5 * cpu_sum_phi.max().item<double>());
  CHECK(largest_difference(gpu_sum, cpu_sum) <=
        bound * std::fmax(1.0, cpu_sum.abs().max().item<double>()));
}

/// Rows that start `offset` elements off alignment, `padding` elements apart.
at::Tensor laid_out(const at::Tensor& probs, std::int64_t offset, std::int64_t padding) {
  const auto sizes = probs.sizes();
  const std::int64_t stride = sizes[3] + padding;
  const std::int64_t num_rows = sizes[0] * sizes[1] * sizes[2];
  const at::Tensor memory = at::full({num_rows * stride + offset}, 7.0, probs.options());
  const at::Tensor view = memory.as_strided(
      sizes, {sizes[1] * sizes[2] * stride, sizes[2] * stride, stride, 1}, offset);
  return view.copy_(probs);
}

void compare_redistribute(at::ScalarType dtype, std::int64_t keys) {
  INFO(dtype << ", K " << keys);
  const Tokens tokens = make_tokens(2, keys);
  const at::Tensor phi = on_gpu(tokens.sink_scores);
  const at::Tensor visual = on_gpu(tokens.visual_mask);
  const at::Tensor row_mask =
      at::tensor(std::vector<std::int64_t>{0, 1, 1, 1, 1, 0, 1, 1}).view({2, 4}).to(at::kBool);
  // Sharper and flatter rows, so that both outcomes are met.
  const at::Tensor temperature = at::rand({2, 3, 4, 1}) * 4.0;
  const at::Tensor probs = at::softmax(at::randn({2, 3, 4, keys}) * temperature, -1).to(dtype);
  const auto rule = rule_with(0.85f, 0.6f, 0.2f);
  const at::Tensor cpu =
      libvar::redistribute(probs, tokens.sink_scores, tokens.visual_mask, row_mask, rule);
  const at::Tensor gpu = libvar::redistribute(on_gpu(probs), phi, visual, on_gpu(row_mask), rule);
  CHECK(largest_difference(gpu, cpu) <= 2 * libvar::kRedistributeBound + unit_of(dtype));
  // A row's bits don't depend on where it lies.
  const std::int64_t aligned = 2 * vector_elements(dtype) - keys % vector_elements(dtype);
  for (const auto& [offset, padding] :
       {std::pair<std::int64_t, std::int64_t>{0, aligned}, {1, aligned}, {0, 5}}) {
    at::Tensor in_place = laid_out(on_gpu(probs), offset, padding);
    CHECK(at::equal(libvar::redistribute(in_place, phi, visual, on_gpu(row_mask), rule), gpu));
    libvar::redistribute_(in_place, phi, visual, on_gpu(row_mask), rule);
    CHECK(at::equal(in_place, gpu));
    // Nothing between the rows was written.
    const at::Tensor between =
        in_place.as_strided({2 * 3 * 4, padding}, {keys + padding, 1}, offset + keys);
    CHECK(between.slice(0, 0, 23).eq(7.0).all().item<bool>());
  }
  at::Tensor rows_outside = on_gpu(probs).transpose(1, 2).contiguous().transpose(1, 2);
  libvar::redistribute_(rows_outside, phi, visual, on_gpu(row_mask), rule);
  CHECK(at::equal(rows_outside, gpu));
  const at::Tensor no_row = at::zeros({2, 4}, at::kBool);
  CHECK(at::equal(
      libvar::redistribute(on_gpu(probs), phi, visual, on_gpu(no_row), rule).to(at::kCPU), probs));
}

}  // namespace

TEST_CASE("CUDA's skinny_linear equals the CPU's", "[linear][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t in_features : {1, 7, 33, 256, 640, 4096, 11008}) {
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        INFO(dtype << ", M " << rows << ", K " << in_features);
        const at::Tensor input = at::randn({rows, in_features}).to(dtype);
        const at::Tensor bias = at::randn({1031}).to(dtype);
        // Rows at multiples of 16 bytes where the size allows it, and elsewhere.
        const at::Tensor wide = at::randn({1031, in_features + 1}).to(dtype);
        const at::Tensor integers =
            at::randint(-128, 128, {1031, in_features}, at::kLong).to(at::kChar);
        const at::Tensor scale = at::rand({1031}).mul(0.02);
        const auto compare = [&](const at::Tensor& weight, const std::optional<at::Tensor>& scales,
                                 const at::Tensor& gpu_weight) {
          const at::Tensor cpu = libvar::skinny_linear(input, weight, bias, scales);
          const at::Tensor gpu =
              libvar::skinny_linear(on_gpu(input), gpu_weight, on_gpu(bias), on_gpu(scales));
          CHECK(gpu.is_contiguous());
          CHECK(largest_difference(gpu, cpu) <=
                (1e-5 + 2 * unit_of(dtype)) * cpu.abs().max().item<double>());
          return gpu;
        };
        const at::Tensor weight = cut(wide, 1, 0, in_features).contiguous();
        compare(weight, std::nullopt, on_gpu(weight));
        compare(cut(wide, 1, 0, in_features), std::nullopt, cut(on_gpu(wide), 1, 0, in_features));
        const at::Tensor gpu = compare(integers, scale, on_gpu(integers));
        // An output's bits depend on its own rows alone.
        CHECK(at::equal(libvar::skinny_linear(on_gpu(input[rows - 1]), on_gpu(integers),
                                              on_gpu(bias), on_gpu(scale)),
                        gpu[rows - 1]));
      }
    }
  }
}

TEST_CASE("CUDA's skinny_swiglu equals the CPU's", "[linear][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t in_features : {33, 640, 4096}) {
      for (const std::int64_t rows : {1, 2, 3, 8}) {
        INFO(dtype << ", M " << rows << ", K " << in_features);
        const double size = std::sqrt(static_cast<double>(in_features));
        const at::Tensor input = at::randn({rows, in_features}).to(dtype);
        const at::Tensor weights = at::randn({2, 517, in_features}).div(size).to(dtype);
        const at::Tensor bias = at::randn({517}).to(dtype);
        const at::Tensor integers =
            at::randint(-128, 128, {2, 517, in_features}, at::kLong).to(at::kChar);
        const at::Tensor scales = at::rand({2, 517}).div(75.0 * size);
        const auto compare = [&](const at::Tensor& cpu, const at::Tensor& gpu) {
          CHECK(gpu.is_contiguous());
          // Each of the roundings may fall to the other side.
          CHECK(largest_difference(gpu, cpu) <=
                (1e-4 + 4 * unit_of(dtype)) * cpu.abs().max().item<double>());
        };
        compare(libvar::skinny_swiglu(input, weights[0], weights[1], bias),
                libvar::skinny_swiglu(on_gpu(input), on_gpu(weights)[0], on_gpu(weights)[1],
                                      on_gpu(bias)));
        compare(libvar::skinny_swiglu(input, integers[0], integers[1], std::nullopt, bias,
                                      scales[0], scales[1]),
                libvar::skinny_swiglu(on_gpu(input), on_gpu(integers)[0], on_gpu(integers)[1],
                                      std::nullopt, on_gpu(bias), on_gpu(scales)[0],
                                      on_gpu(scales)[1]));
      }
    }
  }
}

TEST_CASE("CUDA's silu_mul equals PyTorch's operators", "[silu_mul][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t size : with_borders({1, 33, 2816, 11008}, dtype, {128, 256})) {
      INFO(dtype << ", F " << size);
      // Halves of one product, matrices of their own, rows of two distances, one token.
      const at::Tensor both = on_gpu(at::randn({2, 37, 2 * size + 1}).mul(3.0).to(dtype));
      const at::Tensor gate = cut(both, 2, 0, size), up = cut(both, 2, size, 2 * size);
      const auto compare = [&](const at::Tensor& x, const at::Tensor& y) {
        const at::Tensor out = libvar::silu_mul(x, y);
        CHECK(out.is_contiguous());
        // silu may fall to the other side of a tie, in float32 by some units in the last place.
        const at::Tensor want = at::silu(x).mul(y).to(at::kDouble);
        const double bound = dtype == at::kFloat ? 1e-6 : 2.0 * unit_of(dtype);
        const at::Tensor right = (out.to(at::kDouble) - want).abs() <= want.abs() * bound + 1e-7;
        CHECK(right.all().item<bool>());
        return out;
      };
      const at::Tensor out = compare(gate, up);
      CHECK(at::equal(compare(gate.contiguous(), up.contiguous()), out));
      CHECK(at::equal(compare(gate.transpose(0, 1), up.transpose(0, 1)).transpose(0, 1), out));
      CHECK(at::equal(compare(cut(gate, 1, 3, 30), cut(up, 1, 3, 30)), cut(out, 1, 3, 30)));
      CHECK(at::equal(compare(gate[1][36], up[1][36]), out[1][36]));
    }
  }
  const at::Tensor none = on_gpu(at::ones({0, 16}));
  CHECK(libvar::silu_mul(none, none).sizes() == at::IntArrayRef({0, 16}));
}

TEST_CASE("CUDA's greedy_tokens are the CPU's", "[greedy_tokens][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t size : {1, 7, 8, 1023, 32064, 92553, 152064}) {
      INFO(dtype << ", V " << size);
      at::Tensor logits = at::randn({5, size + 3}).to(dtype);  // half types have equal ones
      if (size > 1) {
        logits[1][size / 2] = std::numeric_limits<double>::quiet_NaN();
        logits[2][size - 1] = std::numeric_limits<double>::infinity();
        logits[3].fill_(-std::numeric_limits<double>::infinity());
        logits[4].fill_(2.0);
      }
      const at::Tensor rows = cut(logits, 1, 1, size + 1);  // none of them aligned alike
      CHECK(at::equal(libvar::greedy_tokens(on_gpu(logits).narrow(1, 1, size)).cpu(),
                      libvar::greedy_tokens(rows)));
    }
  }
  CHECK(libvar::greedy_tokens(on_gpu(at::ones({0, 16}))).numel() == 0);
}

TEST_CASE("a captured CUDA graph multiplies new rows", "[linear][cuda]") {
  if (!have_gpu()) return;
  for (const bool is_gated : {false, true}) {
    at::Tensor input = on_gpu(at::randn({1, 512}).to(at::kBFloat16));
    const at::Tensor weight = on_gpu(at::randn({300, 512}).to(at::kBFloat16));
    const auto run = [&] {
      return is_gated ? libvar::skinny_swiglu(input, weight, weight)
                      : libvar::skinny_linear(input, weight);
    };
    run();  // loads the kernel before the capture
    at::cuda::CUDAGraph graph;
    at::Tensor out;
    {
      const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
      graph.capture_begin();
      out = run();
      graph.capture_end();
    }
    input.mul_(-3.0);
    graph.replay();
    CHECK(at::equal(out, run()));
  }
}

TEST_CASE("kernels that start early give the same bits", "[linear][norms][cuda]") {
  if (!have_gpu()) return;
  constexpr std::int64_t kWidth = 4096, kLayers = 12;
  const auto random = [](std::vector<std::int64_t> sizes, double gain) {
    return on_gpu(at::randn(sizes).mul(gain).to(at::kBFloat16));
  };
  const double gain = 1.0 / std::sqrt(static_cast<double>(kWidth));
  const at::Tensor gate_up = random({kLayers, 2, kWidth, kWidth}, gain),
                   down = random({kLayers, kWidth, kWidth}, gain);
  const at::Tensor norm = random({kWidth}, 1.0), start = random({2, kWidth}, 1.0);
  const at::Tensor dims = on_gpu(at::tensor({7}, at::kLong));
  const auto run = [&] {  // every kernel reads what the one before it has just written
    at::Tensor residual = start.clone();
    at::Tensor delta = at::zeros_like(start);
    for (std::int64_t i = 0; i < kLayers; ++i) {
      const at::Tensor normed =
          std::get<0>(libvar::add_rms_norm_sink_scores(residual, delta, norm, dims));
      delta = libvar::skinny_linear(libvar::skinny_swiglu(normed, gate_up[i][0], gate_up[i][1]),
                                    down[i]);
    }
    return delta;
  };
  const at::Tensor expected = run();
  REQUIRE(at::isfinite(expected).all().item<bool>());
  CHECK_FALSE(libvar::WeightsAreReady::on_this_thread());
  const libvar::WeightsAreReady ready;
  CHECK(libvar::WeightsAreReady::on_this_thread());
  for (int i = 0; i < 20; ++i) CHECK(at::equal(run(), expected));
}

TEST_CASE("CUDA and CPU agree on sink scores and norms", "[norms][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t size :
         with_borders({1, 31, 32, 33, 576, 5120}, dtype, {128, 512, 1024, 2048}))
      compare_norms(dtype, size);
    compare_norms(dtype, 60000);
  }
}

TEST_CASE("CUDA and CPU agree on redistribute", "[redistribute][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t keys :
         with_borders({1, 31, 32, 33, 103, 576, 640, 30000, 60000, 500001}, dtype,
                      {128, 256, 512, 1024, 2048}))
      compare_redistribute(dtype, keys);
  }
}

TEST_CASE("CUDA redistribute of more rows than the device holds at once", "[redistribute][cuda]") {
  if (!have_gpu()) return;
  for (const std::int64_t keys : {640, 4096, 16384}) {
    INFO("K " << keys);
    const Tokens tokens = make_tokens(3, keys);
    const std::int64_t num_rows = 3 * (16 << 20) / 3 / 8 / keys;
    const at::Tensor probs =
        at::softmax(at::randn({3, 8, num_rows, keys}, at::TensorOptions(at::kCUDA)) * 2.0, -1)
            .to(at::kBFloat16);
    const at::Tensor row_mask = at::rand({3, num_rows}) < 0.6;
    const auto rule = rule_with(0.87f, 0.6f, 0.2f);
    const at::Tensor cpu = libvar::redistribute(probs.to(at::kCPU), tokens.sink_scores,
                                                tokens.visual_mask, row_mask, rule);
    const at::Tensor gpu = libvar::redistribute(probs, on_gpu(tokens.sink_scores),
                                                on_gpu(tokens.visual_mask), on_gpu(row_mask), rule);
    // A head within rounding of rho may fall on either side: those rows are counted apart.
    const at::Tensor wrong =
        (gpu.to(at::kCPU, at::kFloat) - cpu.to(at::kFloat)).abs().amax(-1) >
        2 * libvar::kRedistributeBound + unit_of(at::kBFloat16) * cpu.to(at::kFloat).amax(-1);
    CHECK(wrong.sum().item<std::int64_t>() <= wrong.numel() / 100);
    at::Tensor in_place = probs.clone();
    libvar::redistribute_(in_place, on_gpu(tokens.sink_scores), on_gpu(tokens.visual_mask),
                          on_gpu(row_mask), rule);
    CHECK(at::equal(in_place, gpu));
  }
}

TEST_CASE("CUDA and CPU agree on rotate_and_cache bit for bit", "[rotary][cuda]") {
  if (!have_gpu()) return;
  for (const at::ScalarType dtype : kDtypes) {
    for (const std::int64_t head_dim : {2, 6, 34, 64, 80, 128}) {
      INFO(dtype << ", Dh " << head_dim);
      const auto heads = [&](std::int64_t count) {
        return at::randn({3, 5, count, head_dim}).to(dtype).transpose(1, 2);
      };
      libvar::RotaryInputs in = {heads(8),
                                 heads(2),
                                 heads(2),
                                 at::rand({3, 5}),
                                 at::rand({3, 5, head_dim}).to(dtype),
                                 at::rand({3, 5, head_dim}).to(dtype)};
      libvar::RotaryInputs moved = in;
      for (at::Tensor* tensor :
           {&moved.query, &moved.key, &moved.value, &moved.sink_scores, &moved.cos, &moved.sin})
        *tensor = on_gpu(*tensor);
      const at::Tensor places = at::tensor(std::vector<std::int64_t>{0, 7, 3});
      at::Tensor keys = at::zeros({3, 2, 12, head_dim}, dtype), values = at::zeros_like(keys),
                 scores = at::zeros({3, 12});
      at::Tensor gpu_keys = on_gpu(keys), gpu_values = on_gpu(values), gpu_scores = on_gpu(scores);
      const at::Tensor query = libvar::rotate_and_cache(in, places, keys, values, scores);
      const at::Tensor gpu_query =
          libvar::rotate_and_cache(moved, on_gpu(places), gpu_keys, gpu_values, gpu_scores);
      CHECK(at::equal(gpu_query.to(at::kCPU), query));
      CHECK(at::equal(gpu_keys.to(at::kCPU), keys));
      CHECK(at::equal(gpu_values.to(at::kCPU), values));
      CHECK(at::equal(gpu_scores.to(at::kCPU), scores));
    }
  }
}
