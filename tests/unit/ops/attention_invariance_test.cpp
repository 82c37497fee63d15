// What must not change a row of attention: redistribution that moves nothing, the other rows and
// sequences of the call, the capacity behind the keys, threads, and what other rows contain.

#include <ATen/Parallel.h>

#include "cpu/attention.h"
#include "unit/ops/support.h"

namespace libvar::test {
namespace {

AttentionInputs sequence_of(const AttentionInputs& in, std::int64_t b) {
  AttentionInputs one = in;
  for (at::Tensor* tensor :
       {&one.query, &one.key, &one.value, &one.sink_scores, &one.visual_mask}) {
    *tensor = tensor->narrow(0, b, 1);
  }
  if (one.row_mask) one.row_mask = one.row_mask->narrow(0, b, 1);
  if (one.kv_lengths) one.kv_lengths = one.kv_lengths->narrow(0, b, 1);
  return one;
}

TEST_CASE("attention with p = 0 equals plain attention bit for bit", "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    const AttentionInputs in = random_attention({2, 8, 4, 50, 333, 48}, type, 500);
    RedistributionRule off, nothing_moved;
    off.head_rule = HeadRule::kNone;
    nothing_moved.p = 0.0f;
    const at::Tensor plain = attention(in, off);
    AttentionTrace trace;
    trace.selected = at::zeros({2, 8, 50}, at::kBool);
    CHECK(same_bits(attention(in, nothing_moved, {}, &trace), plain));
    CHECK(trace.selected.any().item<bool>());
    nothing_moved.head_rule = HeadRule::kAll;
    CHECK(same_bits(attention(in, nothing_moved), plain));
    CHECK(
        same_bits(attention(in, {}, at::tensor({20.0f, 0.8f, 0.0f, 0.2f}).repeat({2, 1})), plain));

    // Rows that are not selected are those of plain attention, bit for bit; selected rows are not.
    const at::Tensor on = attention(in, {}, {}, &trace);
    const at::Tensor unselected = trace.selected.logical_not();
    CHECK(unselected.any().item<bool>());
    CHECK(same_bits(on.index({unselected}), plain.index({unselected})));
    CHECK(on.ne(plain).any(-1).index({trace.selected}).all().item<bool>());
  }
}

TEST_CASE("a row of attention does not depend on the batch", "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    AttentionInputs in = random_attention({3, 4, 2, 20, 150, 32}, type, 510);
    in.kv_lengths = at::tensor({150, 97, 20}, at::kInt);
    const at::Tensor all = attention(in);
    for (int b = 0; b < 3; ++b)
      CHECK(same_bits(attention(sequence_of(in, b)), all.narrow(0, b, 1)));
  }
}

TEST_CASE("a row of attention does not depend on the capacity behind the keys", "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    const AttentionInputs in = random_attention({2, 4, 2, 20, 150, 32}, type, 520);
    const at::Tensor exact = attention(in);
    for (const std::int64_t capacity : {151, 192, 1024}) {
      AttentionInputs roomy = in;
      const auto widen = [&](const at::Tensor& tensor, std::int64_t dim) {
        std::vector<std::int64_t> sizes = tensor.sizes().vec();
        sizes[static_cast<std::size_t>(dim)] = capacity;
        const at::Tensor wide = at::ones(sizes, tensor.options());
        wide.narrow(dim, 0, 150).copy_(tensor);
        return wide;
      };
      roomy.key = widen(in.key, 2);
      roomy.value = widen(in.value, 2);
      roomy.sink_scores = widen(in.sink_scores, 1);
      roomy.visual_mask = widen(in.visual_mask, 1);
      roomy.kv_lengths = at::full({2}, 150, at::kInt);
      CHECK(same_bits(attention(roomy), exact));
    }
  }
}

// Rows of a chunk are computed a few or many at once, behind fewer or more keys, and with 300 keys
// the sums are taken in two parts. Head sizes: the CPU's general one, and one that it was compiled
// for.
TEST_CASE("a row of attention does not depend on the rows computed with it", "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    for (const std::int64_t head_dim : {40, 64, 128}) {
      AttentionInputs in = random_attention({2, 6, 2, 300, 300, head_dim}, type, 530);
      in.row_mask = at::rand({2, 300}, seeded(531), at::kFloat).lt(0.8);
      const at::Tensor whole = attention(in);
      for (const std::int64_t chunk : {1, 7, 16, 64}) {
        std::vector<at::Tensor> parts;
        for (std::int64_t first = 0; first < 300; first += chunk) {
          const std::int64_t rows = std::min<std::int64_t>(chunk, 300 - first);
          AttentionInputs part = in;
          part.query = in.query.narrow(2, first, rows);
          part.row_mask = in.row_mask->narrow(1, first, rows);
          part.kv_lengths = at::full({2}, first + rows, at::kInt);
          parts.push_back(attention(part));
        }
        INFO(type << ", head size " << head_dim << ", chunks of " << chunk);
        CHECK(same_bits(at::cat(parts, 2), whole));
      }
    }
  }
}

// The second and third have fewer tiles of rows than threads, which then share the keys.
TEST_CASE("attention does not depend on the number of threads", "[attention]") {
  const int threads = at::get_num_threads();
  const AttentionSizes cases[] = {
      {2, 4, 2, 60, 300, 64}, {1, 7, 1, 1, 700, 128}, {1, 6, 2, 5, 1030, 40}};
  for (const at::ScalarType type : kDtypes) {
    for (const AttentionSizes& sizes : cases) {
      AttentionInputs in = random_attention(sizes, type, 540);
      if (sizes.batch == 1) in.kv_lengths = at::full({1}, sizes.num_keys - 3, at::kInt);
      AttentionTrace one, many;
      for (AttentionTrace* trace : {&one, &many}) {
        trace->selected = at::zeros({sizes.batch, sizes.num_heads, sizes.num_rows}, at::kBool);
        trace->class_mass = at::zeros({sizes.batch, sizes.num_heads, sizes.num_rows, 4});
      }
      at::set_num_threads(1);
      const at::Tensor expected = attention(in, {}, {}, &one);
      for (const int count : {2, 5}) {
        INFO(type << ", " << sizes.num_keys << " keys, " << count << " threads");
        at::set_num_threads(count);
        CHECK(same_bits(attention(in, {}, {}, &many), expected));
        CHECK(same_bits(many.selected, one.selected));
        CHECK(same_bits(many.class_mass, one.class_mass));
      }
    }
  }
  at::set_num_threads(threads);
}

TEST_CASE("NaN and infinity in attention stay in the rows that see them", "[attention]") {
  const at::ScalarType type = GENERATE(at::kFloat, at::kHalf, at::kBFloat16);
  // Of an odd and an even position, because values may be added in pairs of keys.
  const std::int64_t bad = GENERATE(24, 25);
  const std::int64_t behind = 40 - bad;
  INFO(type << ", position " << bad);
  AttentionInputs in = random_attention({1, 4, 2, 40, 40, 16}, type, 550);
  const at::Tensor clean = attention(in);
  SECTION("a query") {
    in.query[0][1][13].fill_(kNan);
    const at::Tensor out = attention(in);
    CHECK(out[0][1][13].isnan().all().item<bool>());
    CHECK(same_bits(out[0][0], clean[0][0]));
    CHECK(same_bits(out[0][1].narrow(0, 0, 13), clean[0][1].narrow(0, 0, 13)));
    CHECK(same_bits(out[0][1].narrow(0, 14, 26), clean[0][1].narrow(0, 14, 26)));
    CHECK(same_bits(out[0].narrow(0, 2, 2), clean[0].narrow(0, 2, 2)));
  }
  SECTION("a key") {
    in.key[0][0][bad][3].fill_(kNan);
    const at::Tensor out = attention(in);
    CHECK(same_bits(out.narrow(2, 0, bad), clean.narrow(2, 0, bad)));
    CHECK(out[0].narrow(0, 0, 2).narrow(1, bad, behind).isnan().all().item<bool>());
    CHECK(same_bits(out[0].narrow(0, 2, 2), clean[0].narrow(0, 2, 2)));
  }
  SECTION("a value") {
    for (const double value : {kNan, std::numeric_limits<double>::infinity()}) {
      in.value[0][0][bad][3].fill_(value);
      const at::Tensor out = attention(in);
      CHECK(same_bits(out.narrow(2, 0, bad), clean.narrow(2, 0, bad)));
      const at::Tensor seen = out[0].narrow(0, 0, 2).narrow(1, bad, behind);
      CHECK_FALSE(at::isfinite(seen.select(2, 3)).any().item<bool>());
      CHECK(same_bits(out.narrow(3, 4, 12), clean.narrow(3, 4, 12)));
      CHECK(same_bits(out[0].narrow(0, 2, 2), clean[0].narrow(0, 2, 2)));
    }
  }
  SECTION("scores of -infinity are keys that are not there") {
    in.query.select(3, 0).fill_(1.0);
    in.key[0].narrow(1, 0, 3).fill_(0.0);
    in.key[0].narrow(1, 0, 3).select(2, 0).fill_(-std::numeric_limits<float>::infinity());
    const at::Tensor out = attention(in);
    CHECK(out.narrow(2, 0, 3).eq(0.0).all().item<bool>());
    CHECK_FALSE(out.isnan().any().item<bool>());
    CHECK(same_bits(out.select(2, 3), in.value.select(2, 3).repeat_interleave(2, 1)));
  }
}

// The bits of a row may tell nothing about keys that it does not see: here whether the block in
// which its last key lies holds keys of other classes too.
TEST_CASE("a row of attention does not depend on the classes of keys that it does not see",
          "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    AttentionInputs in = random_attention({1, 2, 1, 40, 60, 32}, type, 555);
    in.sink_scores = at::zeros({1, 60});
    in.sink_scores[0][12].fill_(21.0);
    const at::Tensor before = attention(in);
    in.sink_scores[0][45].fill_(21.0);
    const at::Tensor after = attention(in);
    CHECK(same_bits(after.narrow(2, 0, 25), before.narrow(2, 0, 25)));  // positions 20 to 44
    CHECK_FALSE(same_bits(after.narrow(2, 25, 15), before.narrow(2, 25, 15)));
  }
}

TEST_CASE("the CPU kernel without class logic is plain attention", "[attention]") {
  for (const at::ScalarType type : kDtypes) {
    const AttentionInputs in = random_attention({2, 6, 2, 9, 333, 128}, type, 556);
    RedistributionRule off;
    off.head_rule = HeadRule::kNone;
    const at::Tensor plain = cpu::attention_without_classes(in.query, in.key, in.value, in.scale);
    CHECK(largest_difference(plain, doubles(attention(in, off))) <=
          2.0 * unit(type) * in.value.abs().max().item<double>());
    CHECK(same_bits(cpu::attention_with_classes(in.query, in.key, in.value, in.sink_scores,
                                                in.visual_mask, in.scale, {}),
                    attention(in)));
  }
}

TEST_CASE("attention of scores far apart stays finite", "[attention]") {
  AttentionInputs in = random_attention({1, 2, 1, 20, 200, 16}, at::kFloat, 560);
  in.scale = 1e4;
  const at::Tensor out = attention(in);
  CHECK(at::isfinite(out).all().item<bool>());
  CHECK(out.abs().max().item<double>() <= in.value.abs().max().item<double>());
}

TEST_CASE("attention takes empty tensors", "[attention]") {
  for (const auto& [batch, num_rows, num_keys] :
       {std::tuple{2, 0, 5}, std::tuple{2, 5, 0}, std::tuple{0, 5, 5}}) {
    AttentionInputs in;
    in.query = at::ones({batch, 4, num_rows, 8});
    in.key = at::ones({batch, 2, num_keys, 8});
    in.value = at::ones({batch, 2, num_keys, 8});
    in.sink_scores = at::ones({batch, num_keys});
    in.visual_mask = at::ones({batch, num_keys}, at::kBool);
    const at::Tensor out = attention(in);
    CHECK(out.sizes() == in.query.sizes());
    CHECK(out.eq(0.0).all().item<bool>());
  }
}

}  // namespace
}  // namespace libvar::test
