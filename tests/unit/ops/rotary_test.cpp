// rotate_and_cache on the CPU against the formula in PyTorch's operators, bit for bit, in every
// build.

#include "unit/ops/builds.h"
#include "unit/ops/support.h"

namespace libvar::test {
namespace {

struct RotaryProblem {
  RotaryInputs in;
  at::Tensor key_cache, value_cache, sink_score_cache;
};

struct RotarySizes {
  std::int64_t batch, heads, kv_heads, rows, capacity, head_dim;
};

RotaryProblem random_rotary(const RotarySizes& sizes, at::ScalarType type, bool own_angles) {
  const at::Generator generator = seeded(static_cast<std::uint64_t>(700 + sizes.head_dim));
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::kFloat).to(type);
  };
  RotaryProblem problem;
  // As projections give them: heads beside one another in a row.
  const auto heads = [&](std::int64_t count) {
    return normal({sizes.batch, sizes.rows, count, sizes.head_dim}).transpose(1, 2);
  };
  problem.in.query = heads(sizes.heads);
  problem.in.key = heads(sizes.kv_heads);
  problem.in.value = heads(sizes.kv_heads);
  problem.in.sink_scores = at::rand({sizes.batch, sizes.rows}, generator, at::kFloat);
  const at::Tensor angle =
      at::randn({own_angles ? sizes.batch : 1, sizes.rows, sizes.head_dim}, generator, at::kFloat);
  problem.in.cos = angle.cos().to(type);
  problem.in.sin = angle.sin().to(type);
  const std::vector<std::int64_t> cache = {sizes.batch, sizes.kv_heads, sizes.capacity,
                                           sizes.head_dim};
  problem.key_cache = at::full(cache, kNan, type);
  problem.value_cache = at::full(cache, kNan, type);
  problem.sink_score_cache = at::full({sizes.batch, sizes.capacity}, kNan, at::kFloat);
  return problem;
}

at::Tensor rotate_in_pytorch(const at::Tensor& heads, const RotaryInputs& in) {
  const std::int64_t half = heads.size(-1) / 2;
  const at::Tensor turned =
      at::cat({heads.narrow(-1, half, half).neg(), heads.narrow(-1, 0, half)}, -1);
  return heads * in.cos.unsqueeze(1) + turned * in.sin.unsqueeze(1);
}

void check_rotary(const RotarySizes& sizes, at::ScalarType type, bool own_angles,
                  const std::vector<std::int64_t>& places) {
  INFO(type << ", Dh " << sizes.head_dim << ", " << sizes.rows << " rows");
  const RotaryProblem clean = random_rotary(sizes, type, own_angles);
  at::Tensor keys = clean.key_cache.clone(), values = clean.value_cache.clone(),
             scores = clean.sink_score_cache.clone();
  const at::Tensor rotated_keys = rotate_in_pytorch(clean.in.key, clean.in);
  for (std::int64_t b = 0; b < sizes.batch; ++b) {
    const auto rows = [&](const at::Tensor& cache) {
      return cache[b].narrow(-2, places[static_cast<std::size_t>(b)], sizes.rows);
    };
    rows(keys).copy_(rotated_keys[b]);
    rows(values).copy_(clean.in.value[b]);
    scores[b]
        .narrow(0, places[static_cast<std::size_t>(b)], sizes.rows)
        .copy_(clean.in.sink_scores[b]);
  }
  with_each_build([&] {
    RotaryProblem got = random_rotary(sizes, type, own_angles);
    const at::Tensor query = rotate_and_cache(got.in, at::tensor(places, at::kLong), got.key_cache,
                                              got.value_cache, got.sink_score_cache);
    CHECK(query.is_contiguous());
    CHECK(same_bits(query, rotate_in_pytorch(clean.in.query, clean.in)));
    CHECK(same_bits(got.key_cache, keys));
    CHECK(same_bits(got.value_cache, values));
    CHECK(same_bits(got.sink_score_cache, scores));
    CHECK(same_bits(got.in.key, clean.in.key));  // inputs stay
  });
}

TEST_CASE("rotate_and_cache equals PyTorch's operators bit for bit", "[rotary]") {
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t head_dim : {2, 6, 34, 64, 80, 128}) {
      check_rotary({1, 4, 4, 7, 20, head_dim}, type, false, {5});
      check_rotary({3, 6, 2, 1, 9, head_dim}, type, true, {8, 0, 3});
      check_rotary({2, 3, 1, 4, 4, head_dim}, type, true, {0, 0});
    }
    check_rotary({1, 32, 8, 70, 80, 128}, type, false, {10});  // enough for several threads
    check_rotary({2, 2, 1, 0, 3, 8}, type, false, {3, 0});     // no rows
  }
}

TEST_CASE("rotate_and_cache stores in a view of a larger cache", "[rotary]") {
  RotaryProblem problem = random_rotary({2, 2, 2, 3, 10, 16}, at::kFloat, false);
  const at::Tensor all = at::zeros({4, 2, 20, 16});
  at::Tensor keys = all.narrow(0, 1, 2).narrow(2, 0, 10);
  rotate_and_cache(problem.in, at::tensor({7, 2}, at::kLong), keys, problem.value_cache,
                   problem.sink_score_cache);
  const at::Tensor rotated = rotate_in_pytorch(problem.in.key, problem.in);
  at::Tensor expected = at::zeros({4, 2, 20, 16});
  expected[1].narrow(1, 7, 3).copy_(rotated[0]);
  expected[2].narrow(1, 2, 3).copy_(rotated[1]);
  CHECK(same_bits(all, expected));
}

}  // namespace
}  // namespace libvar::test
