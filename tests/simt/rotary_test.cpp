// The kernel of rotate_and_cache against the formula with transformers' rounding, bit for bit, in
// every lane order.

#include <catch2/catch.hpp>

#include <cstring>
#include <random>
#include <vector>

#include "cuda/rotary.cuh"
#include "element_types.h"
#include "lane_orders.h"

namespace {

struct Sizes {
  std::int64_t batch, heads, kv_heads, rows, capacity;
  int half;
  std::int64_t padding;  ///< elements between rows
  bool own_angles;
};

template <typename T>
struct Problem {
  Sizes sizes;
  std::vector<T> query, key, value, cos, sin;  // [B, Q, heads, Dh + padding], as projections give
  std::vector<float> scores;
  std::vector<std::int64_t> places;

  std::int64_t width() const { return 2 * sizes.half + sizes.padding; }

  std::size_t at(std::int64_t b, std::int64_t i, std::int64_t heads, std::int64_t h) const {
    return static_cast<std::size_t>(((b * sizes.rows + i) * heads + h) * width());
  }
};

template <typename T>
struct Stored {
  std::vector<T> rotated, keys, values;
  std::vector<float> scores;

  bool operator==(const Stored& other) const {
    return same_bits(rotated, other.rotated) && same_bits(keys, other.keys) &&
           same_bits(values, other.values) && same_bits(scores, other.scores);
  }
};

template <typename T>
Stored<T> nothing_stored(const Sizes& s) {
  const auto count = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const std::int64_t cached = s.batch * s.kv_heads * s.capacity * 2 * s.half;
  return {unwritten<T>(count(s.batch * s.heads * s.rows * 2 * s.half)), unwritten<T>(count(cached)),
          unwritten<T>(count(cached)), unwritten<float>(count(s.batch * s.capacity))};
}

template <typename T>
Problem<T> make_problem(const Sizes& sizes, std::vector<std::int64_t> places) {
  std::mt19937 random(static_cast<unsigned>(sizes.half));
  std::normal_distribution<double> normal;
  Problem<T> in;
  in.sizes = sizes;
  in.places = std::move(places);
  const auto fill = [&](std::vector<T>& values, std::int64_t heads) {
    values.resize(in.at(sizes.batch, 0, heads, 0));
    for (T& x : values) x = to_element<T>(normal(random));
  };
  fill(in.query, sizes.heads);
  fill(in.key, sizes.kv_heads);
  fill(in.value, sizes.kv_heads);
  fill(in.cos, 1);
  fill(in.sin, 1);
  for (std::int64_t i = 0; i < sizes.batch * sizes.rows; ++i)
    in.scores.push_back(static_cast<float>(normal(random)));
  return in;
}

template <typename T>
Stored<T> run_kernel(const Problem<T>& in) {
  const Sizes& s = in.sizes;
  Stored<T> out = nothing_stored<T>(s);
  const std::int64_t width = in.width(), head_dim = 2 * s.half;
  const auto strides = [&](std::int64_t heads) {
    return libvar::cuda::RowStrides{s.rows * heads * width, width, heads * width};
  };
  const libvar::cuda::RowStrides cache = {s.kv_heads * s.capacity * head_dim, s.capacity * head_dim,
                                          head_dim};
  libvar::cuda::RotaryArguments<T> args = {};
  args.query = in.query.data();
  args.key = in.key.data();
  args.value = in.value.data();
  args.sink_scores = in.scores.data();
  args.cos = in.cos.data();
  args.sin = in.sin.data();
  args.places = in.places.data();
  args.rotated = out.rotated.data();
  args.key_cache = out.keys.data();
  args.value_cache = out.values.data();
  args.sink_score_cache = out.scores.data();
  args.query_stride = strides(s.heads);
  args.key_stride = args.value_stride = strides(s.kv_heads);
  args.key_cache_stride = args.value_cache_stride = cache;
  args.sink_scores_stride = {s.rows, 1};
  args.sink_score_cache_stride = {s.capacity, 1};
  args.cos_stride = args.sin_stride = {s.own_angles ? s.rows * width : 0, width};
  args.batch = s.batch;
  args.num_rows = s.rows;
  args.capacity = s.capacity;
  args.num_heads = static_cast<int>(s.heads);
  args.num_kv_heads = static_cast<int>(s.kv_heads);
  args.half = s.half;
  REQUIRE(libvar::cuda::launch_rotary(args, nullptr) == cudaSuccess);
  return out;
}

template <typename T>
Stored<T> expected(const Problem<T>& in) {
  const Sizes& s = in.sizes;
  const std::int64_t head_dim = 2 * s.half;
  const auto round = [](double x) { return to_double(to_element<T>(x)); };
  // Both products and the sum are rounded: of float32 from exact doubles, which is the same.
  const auto rotate = [&](const T* head, std::int64_t b, std::int64_t i, T* out) {
    const std::size_t angles = in.at(s.own_angles ? b : 0, i, 1, 0);
    for (int d = 0; d < head_dim; ++d) {
      const double other = d < s.half ? -to_double(head[d + s.half]) : to_double(head[d - s.half]);
      const double straight = round(to_double(head[d]) * to_double(in.cos[angles + d]));
      out[d] = to_element<T>(straight + round(other * to_double(in.sin[angles + d])));
    }
  };
  Stored<T> out = nothing_stored<T>(s);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t i = 0; i < s.rows; ++i) {
      for (std::int64_t h = 0; h < s.heads; ++h) {
        rotate(&in.query[in.at(b, i, s.heads, h)], b, i,
               &out.rotated[static_cast<std::size_t>(((b * s.heads + h) * s.rows + i) * head_dim)]);
      }
      const std::int64_t place = in.places[static_cast<std::size_t>(b)] + i;
      if (place < 0 || place >= s.capacity) continue;
      for (std::int64_t h = 0; h < s.kv_heads; ++h) {
        const auto to =
            static_cast<std::size_t>(((b * s.kv_heads + h) * s.capacity + place) * head_dim);
        rotate(&in.key[in.at(b, i, s.kv_heads, h)], b, i, &out.keys[to]);
        const auto value = in.value.begin() + static_cast<long>(in.at(b, i, s.kv_heads, h));
        std::copy(value, value + head_dim, out.values.begin() + static_cast<long>(to));
      }
      out.scores[static_cast<std::size_t>(b * s.capacity + place)] =
          in.scores[static_cast<std::size_t>(b * s.rows + i)];
    }
  }
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("rotate_and_cache equals the formula bit for bit", "[simt][rotary]", float,
                   __half, __nv_bfloat16) {
  const auto check = [](const Sizes& sizes, const std::vector<std::int64_t>& places) {
    INFO("Dh " << 2 * sizes.half << ", padding " << sizes.padding);
    const auto in = make_problem<TestType>(sizes, places);
    const auto want = expected(in);
    for_all_lane_orders([&] { CHECK(run_kernel(in) == want); });
  };
  for (const int half : {1, 3, 4, 17, 32, 64}) {
    check({1, 4, 4, 3, 9, half, 0, false}, {6});
    check({3, 6, 2, 1, 9, half, 1, true}, {8, 0, 3});
    check({2, 3, 1, 2, 5, half, 8, true}, {3, 0});
  }
}

TEST_CASE("rotate_and_cache doesn't store outside the cache", "[simt][rotary]") {
  const Sizes sizes{3, 2, 1, 2, 4, 8, 0, false};
  const auto in = make_problem<float>(sizes, {-1, 3, std::int64_t{1} << 40});
  const auto got = run_kernel(in);
  CHECK(got == expected(in));
  CHECK(std::isnan(got.scores[8]));
}
