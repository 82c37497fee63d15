#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <c10/core/InferenceMode.h>

#include <limits>
#include <numeric>

#include "catch.h"
#include "decoder/decoder.h"
#include "generate/conversation.h"
#include "libvar/error.h"
#include "unit/model/tiny_decoder.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

/// What a Conversation made of a prompt given as embeddings: logits of every generated step's row
/// and the last prompt row.
struct Run {
  at::Tensor logits;  // [1 + generated, V]
  at::Tensor phi;     // [layers, N]
  std::vector<std::int64_t> selected_rows;
};

struct RunOptions {
  std::int64_t chunk = 0;
  std::int64_t capacity_slack = 0;
  bool fuse = false;
  at::ScalarType dtype = at::kFloat;
};

ComputeTarget target_of(const RunOptions& options) {
  ComputeTarget target;
  target.dtype = options.dtype;
  target.fuse_projections = options.fuse;
  return target;
}

/// Feeds the prompt in chunks and then `generated` ids, straight through the decoder.
Run run(const TinyDecoder& tiny, const TinyPrompt& prompt, const VarParams& var,
        const std::vector<std::int64_t>& generated = {}, const RunOptions& options = {}) {
  const c10::InferenceMode inference;
  const ComputeTarget target = target_of(options);
  const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, target));
  KvCache cache(tiny.config, target);
  const std::int64_t rows = prompt.embeddings.size(1);
  cache.reserve(rows + static_cast<std::int64_t>(generated.size()) + options.capacity_slack);
  for (const auto& [begin, end] : prompt.visual_spans) cache.mark_visual(begin, end);
  DecoderPass pass;
  pass.var = var;
  pass.plain_end = prompt.visual_spans.empty() ? std::numeric_limits<std::int64_t>::max()
                                               : prompt.visual_spans[0].second;
  pass.selected_rows = at::zeros({tiny.config.num_layers}, at::kLong);
  std::vector<at::Tensor> logits;
  const std::int64_t chunk = options.chunk > 0 ? options.chunk : rows;
  at::Tensor last;
  for (std::int64_t begin = 0; begin < rows; begin += chunk) {
    const at::Tensor part =
        prompt.embeddings.narrow(1, begin, std::min(chunk, rows - begin)).to(options.dtype).clone();
    last = decoder.logits(decoder(part, pass, cache)).flatten(0, 1);
  }
  logits.push_back(last);
  pass.generated = true;
  for (const std::int64_t id : generated) {
    const at::Tensor embedding = decoder.embed(at::tensor({id}, at::kLong)).unsqueeze(0);
    logits.push_back(decoder.logits(decoder(embedding, pass, cache)).flatten(0, 1));
  }
  const std::int64_t* selected = pass.selected_rows.const_data_ptr<std::int64_t>();
  return {at::cat(logits), cache.all_sink_scores().select(1, 0),
          std::vector<std::int64_t>(selected, selected + tiny.config.num_layers)};
}

/// The reference on the same tokens: logits of the rows that `run` gives.
EagerResult reference(const TinyDecoder& tiny, const TinyPrompt& prompt, const VarParams& var,
                      const std::vector<std::int64_t>& generated) {
  at::Tensor all = prompt.embeddings;
  if (!generated.empty()) {
    const at::Tensor more = tiny.tensors.at("model.embed_tokens.weight")
                                .index_select(0, at::tensor(generated, at::kLong));
    all = at::cat({all, more.unsqueeze(0)}, 1);
  }
  const std::int64_t rows = prompt.embeddings.size(1);
  EagerResult result = run_eager(tiny, all, prompt.visual_spans, var, rows);
  result.logits =
      result.logits.narrow(0, rows - 1, 1 + static_cast<std::int64_t>(generated.size()));
  return result;
}

double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const at::Tensor exact = expected.to(at::kDouble);
  return ((actual.to(at::kDouble) - exact).abs().max() / exact.abs().max()).item<double>();
}

VarParams params(bool enabled) {
  VarParams var;
  var.enabled = enabled;
  var.first_layer = 1;
  var.rho = 0.85f;
  var.min_visual_mass = 0.3f;
  return var;
}

const std::vector<std::int64_t> kGenerated{7, 3, 3, 21, 48, 11};

void check_against_reference(const TinyDecoder& tiny, const TinyPrompt& prompt,
                             const VarParams& var, const RunOptions& options = {}) {
  const Run actual = run(tiny, prompt, var, kGenerated, options);
  const EagerResult expected = reference(tiny, prompt, var, kGenerated);
  CHECK(actual.selected_rows == expected.selected_rows);
  const double phi_error = relative_error(actual.phi, expected.phi),
               logits_error = relative_error(actual.logits, expected.logits);
  CAPTURE(phi_error, logits_error);
  CHECK(phi_error <= 1e-5);
  CHECK(logits_error <= 2e-5);
}

std::int64_t sum(const std::vector<std::int64_t>& values) {
  return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

}  // namespace

TEST_CASE("the decoder equals the double-precision reference without redistribution", "[decoder]") {
  const TinyDecoder plain = make_tiny_decoder();
  check_against_reference(plain, make_tiny_prompt(plain, 1), params(false));
  check_against_reference(plain, make_tiny_prompt(plain, 0), params(false));
  check_against_reference(plain, make_tiny_prompt(plain, 2), params(false));
  TinyDecoderOptions grouped;
  grouped.heads = 6;
  grouped.kv_heads = 2;
  grouped.head_dim = 40;
  grouped.biases = true;
  grouped.tied = true;
  const TinyDecoder gqa = make_tiny_decoder(grouped);
  check_against_reference(gqa, make_tiny_prompt(gqa, 1), params(false));
}

TEST_CASE("the decoder equals the double-precision reference with redistribution",
          "[decoder][var]") {
  const TinyDecoder tiny = make_tiny_decoder();
  VarParams var = params(true);
  for (const int images : {0, 1, 2}) {
    CAPTURE(images);
    check_against_reference(tiny, make_tiny_prompt(tiny, images), var);
  }
  const TinyPrompt prompt = make_tiny_prompt(tiny, 1);
  const EagerResult expected = reference(tiny, prompt, var, kGenerated);
  const double share = static_cast<double>(sum(expected.selected_rows)) /
                       static_cast<double>(sum(expected.eligible_rows));
  CAPTURE(share);
  CHECK(share > 0.1);  // or the test would show nothing
  CHECK(share < 0.95);
  CHECK(expected.selected_rows[0] == 0);
  CHECK(expected.selected_rows[3] == 0);
  var.include_last_layer = true;
  var.first_layer = 0;
  check_against_reference(tiny, prompt, var);
  var.ratio_epsilon = 1e-6f;
  var.phi_epsilon = 0.5f;
  var.generated_sinks = false;
  check_against_reference(tiny, prompt, var);
  var = params(true);
  var.head_rule = HeadRule::kAll;
  var.targets = class_set(TokenClass::kTextNonSink, TokenClass::kVisualNonSink);
  check_against_reference(tiny, prompt, var);
}

TEST_CASE("chunked prefill equals unchunked prefill", "[decoder][var]") {
  const TinyDecoder tiny = make_tiny_decoder();
  for (const int images : {0, 1, 2}) {
    const TinyPrompt prompt = make_tiny_prompt(tiny, images);
    const Run whole = run(tiny, prompt, params(true), kGenerated);
    for (const std::int64_t chunk : {1, 4, 7, 15, 16, 19}) {
      RunOptions options;
      options.chunk = chunk;
      const Run pieces = run(tiny, prompt, params(true), kGenerated, options);
      const double error = relative_error(pieces.logits, whole.logits);
      CAPTURE(images, chunk, error);
      CHECK(error <= 1e-5);
      CHECK(pieces.selected_rows == whole.selected_rows);
      CHECK(relative_error(pieces.phi, whole.phi) <= 1e-5);
    }
  }
}

TEST_CASE("p = 0 equals redistribution off bit for bit", "[decoder][var]") {
  const TinyDecoder tiny = make_tiny_decoder();
  const TinyPrompt prompt = make_tiny_prompt(tiny, 2);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    RunOptions options;
    options.dtype = dtype;
    VarParams zero = params(true);
    zero.p = 0.0f;
    const Run off = run(tiny, prompt, params(false), kGenerated, options);
    const Run with_zero = run(tiny, prompt, zero, kGenerated, options);
    CHECK(sum(with_zero.selected_rows) > 0);
    CHECK(at::equal(off.logits, with_zero.logits));
    VarParams other = zero;  // whatever the other settings are
    other.tau = 3.0f;
    other.rho = 0.0f;
    CHECK(at::equal(off.logits, run(tiny, prompt, other, kGenerated, options).logits));
    const Run on = run(tiny, prompt, params(true), kGenerated, options);
    CHECK(!at::equal(off.logits, on.logits));
  }
}

TEST_CASE("redistribution changes nothing without an image", "[decoder][var]") {
  const TinyDecoder tiny = make_tiny_decoder();
  const TinyPrompt prompt = make_tiny_prompt(tiny, 0);
  const Run on = run(tiny, prompt, params(true), kGenerated),
            off = run(tiny, prompt, params(false), kGenerated);
  CHECK(at::equal(on.logits, off.logits));
  CHECK(sum(on.selected_rows) == 0);
}

TEST_CASE("the positions up to the end of the first image do not depend on the settings",
          "[decoder][var]") {
  const TinyDecoder tiny = make_tiny_decoder();
  TinyPrompt prompt = make_tiny_prompt(tiny, 1);
  const Run on = run(tiny, prompt, params(true)), off = run(tiny, prompt, params(false));
  const std::int64_t end = prompt.visual_spans[0].second;
  CHECK(at::equal(on.phi.narrow(1, 0, end), off.phi.narrow(1, 0, end)));
  CHECK(!at::equal(on.phi, off.phi));
}

TEST_CASE("results do not depend on the capacity of the cache", "[decoder][cache]") {
  const TinyDecoder tiny = make_tiny_decoder();
  const TinyPrompt prompt = make_tiny_prompt(tiny, 1);
  RunOptions roomy;
  roomy.capacity_slack = 37;
  CHECK(at::equal(run(tiny, prompt, params(true), kGenerated).logits,
                  run(tiny, prompt, params(true), kGenerated, roomy).logits));
}

TEST_CASE("fused projections compute what separate ones do", "[decoder]") {
  TinyDecoderOptions grouped;
  grouped.heads = 4;
  grouped.kv_heads = 2;
  grouped.biases = true;
  const TinyDecoder tiny = make_tiny_decoder(grouped);
  const TinyPrompt prompt = make_tiny_prompt(tiny, 1);
  RunOptions fused;
  fused.fuse = true;
  check_against_reference(tiny, prompt, params(true), fused);
}

TEST_CASE("weights that are on the device in the right dtype are used in place", "[decoder]") {
  const TinyDecoder tiny = make_tiny_decoder();
  const WeightReader reader(tiny.tensors, ComputeTarget());
  const at::Tensor& source = tiny.tensors.at("model.norm.weight");
  CHECK(reader.read("model.norm.weight", {448}).const_data_ptr() == source.const_data_ptr());
  ComputeTarget half;
  half.dtype = at::kBFloat16;
  CHECK(WeightReader(tiny.tensors, half).read("model.norm.weight", {448}).scalar_type() ==
        at::kBFloat16);
}

TEST_CASE("weights are copied where the target says so, and the source is told", "[decoder]") {
  TinyDecoder tiny = make_tiny_decoder();
  tiny.tensors["model.scale"] = at::ones({7}).to(at::kChar);
  ComputeTarget copies;
  copies.copies_weights = true;
  std::vector<const void*> copied;
  WeightReader::Hooks hooks;
  hooks.on_copied = [&](const at::Tensor& source) { copied.push_back(source.const_data_ptr()); };
  const WeightReader reader(tiny.tensors, copies, hooks);
  std::vector<at::Tensor> found;
  for (const auto& [name, source] : tiny.tensors) {
    found.push_back(reader.read_as_stored(name, source.sizes()));
    CHECK(found.back().const_data_ptr() != source.const_data_ptr());
    CHECK(reinterpret_cast<std::uintptr_t>(found.back().const_data_ptr()) % 64 == 0);
    CHECK(copied.back() == source.const_data_ptr());
  }
  std::size_t i = 0;  // none was overwritten by a later one
  for (const auto& [name, source] : tiny.tensors) CHECK(at::equal(found[i++], source));
  CHECK(copied.size() == tiny.tensors.size());

  copied.clear();
  const WeightReader in_place(tiny.tensors, ComputeTarget(), hooks);
  in_place.read("model.norm.weight", {448});
  CHECK(copied.empty());
}

TEST_CASE("a weight that is missing or of another shape is named", "[decoder]") {
  TinyDecoder tiny = make_tiny_decoder();
  using Catch::Matchers::Contains;
  tiny.tensors["lm_head.weight"] = at::full({3, 4}, 1.0);
  CHECK_THROWS_WITH(
      Decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget())),
      Contains("lm_head.weight") && Contains("[50, 448]") && Contains("[3, 4]"));
  tiny.tensors.erase("lm_head.weight");
  CHECK_THROWS_AS(Decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget())),
                  ArchiveError);
}

TEST_CASE("a conversation counts positions, sinks and selected rows", "[conversation][var]") {
  const c10::InferenceMode inference;
  const TinyDecoder tiny = make_tiny_decoder();
  const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget()));
  const TinyPrompt prompt = make_tiny_prompt(tiny, 1);
  const auto& [begin, end] = prompt.visual_spans[0];
  const at::Tensor features = prompt.embeddings.narrow(1, begin, end - begin);

  const VarParams var = params(true);
  Conversation conversation(decoder, 0);
  const Sequence first = expand_image_tokens({1, 2, 3, -200, 4, 5}, -200, {{end - begin}});
  CHECK(first.visual_spans == std::vector<std::pair<std::int64_t, std::int64_t>>{{3, 12}});
  conversation.prefill(first, {features[0]}, var, 2);
  conversation.step(9, var);
  const VarStatistics one = conversation.statistics(var);
  CHECK(conversation.length() == 15);
  CHECK(one.visual_sinks[1] == std::vector<std::int64_t>{4});
  CHECK(one.eligible_rows == std::vector<std::int64_t>{0, 3 * 4, 3 * 4, 0});
  CHECK(sum(one.selected_rows) > 0);

  // A second turn with another image: spans count from the beginning of the conversation, rows from
  // that of the turn.
  const Sequence second = expand_image_tokens({6, -200, 7, 8, 9}, -200, {{end - begin}});
  conversation.prefill(second, {features[0]}, var, 2);
  CHECK(conversation.visual_spans() ==
        std::vector<std::pair<std::int64_t, std::int64_t>>{{3, 12}, {16, 25}});
  const VarStatistics two = conversation.statistics(var);
  CHECK(two.visual_sinks[1] == std::vector<std::int64_t>{4, 17});
  CHECK(two.eligible_rows == std::vector<std::int64_t>{0, 4 * 4, 4 * 4, 0});
  VarParams off = var;
  off.enabled = false;
  CHECK(sum(conversation.statistics(off).eligible_rows) == 0);

  conversation.clear();
  const at::Tensor again = conversation.prefill(first, {features[0]}, var, 2);
  Conversation fresh(decoder, 0);
  CHECK(at::equal(again, fresh.prefill(first, {features[0]}, var, 2)));
}

TEST_CASE("two turns in one cache equal one prompt", "[conversation]") {
  const c10::InferenceMode inference;
  const TinyDecoder tiny = make_tiny_decoder();
  const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget()));
  const at::Tensor features = make_tiny_prompt(tiny, 1).embeddings.narrow(1, 6, 9);
  const VarParams var = params(true);
  Conversation whole(decoder, 0), turns(decoder, 0);
  const at::Tensor expected = whole.prefill(
      expand_image_tokens({1, 2, -200, 4, 5, 6, 7}, -200, {{9}}), {features[0]}, var, 1);
  turns.prefill(expand_image_tokens({1, 2, -200, 4}, -200, {{9}}), {features[0]}, var, 0);
  const at::Tensor actual = turns.prefill(expand_image_tokens({5, 6, 7}, -200, {}), {}, var, 1);
  CHECK(relative_error(actual, expected) <= 1e-5);
}

TEST_CASE("features and image places must agree", "[sequence]") {
  const c10::InferenceMode inference;
  const TinyDecoder tiny = make_tiny_decoder();
  const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget()));
  const Sequence sequence = expand_image_tokens({1, 49, 2, 49}, 49, {{3}, {2}});
  CHECK(sequence.ids == std::vector<std::int64_t>{1, 49, 49, 49, 2, 49, 49});
  CHECK_THROWS_AS(expand_image_tokens({1, 49, 2, 49}, 49, {{3}}), InputError);
  const at::Tensor three = random_tensor({3, 448}, 5), two = random_tensor({2, 448}, 6);
  const at::Tensor embedded = embed_sequence(decoder, sequence, {three, two});
  CHECK(at::equal(embedded[0].narrow(0, 1, 3), three));
  CHECK(at::equal(embedded[0].narrow(0, 5, 2), two));
  CHECK(at::equal(embedded[0][4], tiny.tensors.at("model.embed_tokens.weight")[2]));
  CHECK_THROWS_AS(embed_sequence(decoder, sequence, {three}), InputError);
  CHECK_THROWS_AS(embed_sequence(decoder, sequence, {}), InputError);
  CHECK_THROWS_AS(embed_sequence(decoder, sequence, {two, three}), InputError);
}

TEST_CASE("positions with three coordinates follow the grid of each image", "[sequence]") {
  // models.md 4.5: text, text, vision start, an image of 2 x 3 tokens, vision end, text, text.
  const Sequence one = expand_image_tokens({1, 2, 3, 49, 4, 5, 6}, 49, {{6, 2, 3}});
  CHECK(at::equal(three_axis_positions(one, 0), at::tensor({0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8,  //
                                                            0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8,  //
                                                            0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8})
                                                    .view({3, 12})));
  // A later turn begins behind the largest coordinate so far; a tall image takes up its rows.
  const Sequence two = expand_image_tokens({1, 49, 2}, 49, {{4, 4, 1}});
  CHECK(at::equal(three_axis_positions(two, 9),
                  at::tensor({9, 10, 10, 10, 10, 14, 9, 10, 11, 12, 13, 14, 9, 10, 10, 10, 10, 14})
                      .view({3, 6})));
}
