// DecodeStep against a Conversation that runs one token at a time, with and without captured steps.
// On the CPU a captured step is the work that it was made of, with what it was captured with.

#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <c10/core/InferenceMode.h>

#include <limits>
#include <vector>

#include "catch.h"
#include "generate/conversation.h"
#include "generate/decode_step.h"
#include "unit/model/tiny_decoder.h"

using namespace libvar;
using namespace libvar::testing;

namespace {

struct Case {
  std::int64_t image_rows = 9;
  VarParams var;
  GenerationParams generation;
};

struct Steps {
  std::vector<std::int64_t> tokens;
  std::vector<at::Tensor> logits;
  at::Tensor sink_scores;  // as they are kept
  VarStatistics statistics;
};

TinyDecoder long_decoder() {
  TinyDecoder tiny = make_tiny_decoder({4, 2, 24, true, false});
  tiny.config.max_positions = 400;
  return tiny;
}

class Fixture {
 public:
  Fixture()
      : tiny_(long_decoder()),
        decoder_(tiny_.config, tiny_.sink_dims, WeightReader(tiny_.tensors, ComputeTarget())) {}

  const Decoder& decoder() const { return decoder_; }

  /// A conversation behind its prompt. @return the first token
  std::int64_t prefill(Conversation& conversation, const Case& one, std::int64_t steps) const {
    const TinyPrompt prompt = make_tiny_prompt(tiny_, 1, one.image_rows);
    const auto& [begin, end] = prompt.visual_spans[0];
    const Sequence sequence = expand_image_tokens({1, 2, 3, -200, 4, 5}, -200, {{end - begin}});
    const at::Tensor logits = conversation.prefill(
        sequence, {prompt.embeddings.narrow(1, begin, end - begin)[0]}, one.var, steps);
    return choose_token(logits, one.generation, 0);
  }

  Steps by_conversation(const Case& one, std::int64_t steps) const {
    Conversation conversation(decoder_, 0);
    Steps out;
    out.tokens = {prefill(conversation, one, steps)};
    for (std::int64_t i = 0; i < steps; ++i) {
      out.logits.push_back(conversation.step(out.tokens.back(), one.var));
      out.tokens.push_back(
          choose_token(out.logits.back(), one.generation, static_cast<std::uint64_t>(i) + 1));
    }
    out.sink_scores = conversation.cache().all_sink_scores();
    out.statistics = conversation.statistics(one.var);
    return out;
  }

  /// All cases in one batch; the step is begun anew after each `run` steps.
  std::vector<Steps> by_step(const std::vector<Case>& cases, std::int64_t steps, std::int64_t run,
                             DecodeStep& step) const {
    const auto batch = static_cast<std::int64_t>(cases.size());
    KvCache cache(decoder_.config(), decoder_.target(), batch);
    cache.reserve(400);
    std::vector<Steps> out(cases.size());
    std::vector<Conversation> conversations;
    for (std::int64_t i = 0; i < batch; ++i) {
      KvCache own = cache.sequences(i, 1, 0);
      own.clear();
      conversations.emplace_back(decoder_, 0, std::move(own));
      const auto index = static_cast<std::size_t>(i);
      out[index].tokens = {prefill(conversations.back(), cases[index], steps)};
    }
    for (std::int64_t done = 0; done < steps; ++done) {
      if (done % run == 0) {
        std::vector<StepSequence> sequences;
        for (std::size_t i = 0; i < cases.size(); ++i) {
          sequences.push_back({out[i].tokens.back(), conversations[i].length(),
                               conversations[i].next_position(), out[i].tokens.size(), cases[i].var,
                               cases[i].generation});
        }
        step.begin(sequences, cache);
      }
      const std::vector<std::int64_t> tokens = step.run();
      for (std::size_t i = 0; i < cases.size(); ++i) {
        out[i].tokens.push_back(tokens[i]);
        out[i].logits.push_back(step.logits()[static_cast<std::int64_t>(i)].clone());
        conversations[i].count_step();
      }
      if ((done + 1) % run != 0 && done + 1 != steps) continue;
      const at::Tensor selected = step.take_selected_rows();
      for (std::size_t i = 0; i < cases.size(); ++i)
        conversations[i].add_selected_rows(selected.select(1, static_cast<std::int64_t>(i)));
      step.end();
    }
    for (std::size_t i = 0; i < cases.size(); ++i) {
      out[i].sink_scores = conversations[i].cache().all_sink_scores().clone();
      out[i].statistics = conversations[i].statistics(cases[i].var);
    }
    return out;
  }

 private:
  TinyDecoder tiny_;
  Decoder decoder_;
};

VarParams var_params(bool enabled, float rho = 0.5F, float p = 0.6F) {
  VarParams var;
  var.enabled = enabled;
  var.first_layer = 1;
  var.rho = rho;
  var.p = p;
  var.min_visual_mass = 0.0F;
  return var;
}

GenerationParams generation_params(double temperature, std::int64_t top_k, double top_p) {
  GenerationParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.seed = 11;
  return params;
}

bool equal(const Steps& a, const Steps& b) {
  if (a.tokens != b.tokens || a.logits.size() != b.logits.size()) return false;
  for (std::size_t i = 0; i < a.logits.size(); ++i) {
    if (!at::equal(a.logits[i], b.logits[i])) return false;
  }
  return at::equal(a.sink_scores, b.sink_scores) &&
         a.statistics.selected_rows == b.statistics.selected_rows &&
         a.statistics.visual_sinks == b.statistics.visual_sinks;
}

}  // namespace

TEST_CASE("steps of one sequence are those of a conversation, bit for bit", "[decode_step]") {
  const c10::InferenceMode inference;
  const Fixture fixture;
  VarParams sinks_of_generated = var_params(true);
  sinks_of_generated.generated_sinks = !sinks_of_generated.generated_sinks;
  VarParams off = sinks_of_generated;
  off.enabled = false;
  off.phi_epsilon = 0.5F;
  std::vector<Case> cases = {
      {9, var_params(false), {}},
      {9, off, {}},
      {9, var_params(true), {}},
      {9, sinks_of_generated, generation_params(1.0, 0, 1.0)},
      {9, var_params(true), generation_params(1.5, 10, 0.8)},
      {240, var_params(true), generation_params(1.5, 0, 1.0)},  // past 256 keys
  };
  std::int64_t selected = 0;
  for (const bool graphs : {false, true}) {
    DecodeStep step(fixture.decoder(), 1, graphs);
    for (const Case& one : cases) {
      const Steps expected = fixture.by_conversation(one, 20);
      CHECK(equal(fixture.by_step({one}, 20, 20, step)[0], expected));
      CHECK(equal(fixture.by_step({one}, 20, 7, step)[0], expected));
      for (const std::int64_t rows : expected.statistics.selected_rows) selected += rows;
    }
  }
  CHECK(selected > 0);
}

TEST_CASE("steps of several sequences are those of each alone", "[decode_step]") {
  const c10::InferenceMode inference;
  const Fixture fixture;
  const std::vector<Case> cases = {
      {9, var_params(true, 0.3F, 0.9F), {}},
      {230, var_params(true, 0.6F, 0.4F), generation_params(1.5, 5, 1.0)},
      {30, var_params(false), generation_params(0.9, 0, 0.7)},
      {12, var_params(true, 0.0F, 1.0F), generation_params(2.0, 0, 1.0)}};
  for (const bool graphs : {false, true}) {
    DecodeStep step(fixture.decoder(), 4, graphs);
    for (const std::int64_t run : {25, 4}) {
      const std::vector<Steps> found = fixture.by_step(cases, 25, run, step);
      for (std::size_t i = 0; i < cases.size(); ++i) {
        const Steps expected = fixture.by_conversation(cases[i], 25);
        CHECK(found[i].tokens == expected.tokens);
        CHECK(found[i].statistics.selected_rows == expected.statistics.selected_rows);
        for (std::size_t n = 0; n < expected.logits.size(); ++n)
          CHECK(at::allclose(found[i].logits[n], expected.logits[n], 1e-5, 1e-5));
      }
    }
    // Fewer sequences afterwards, in the same buffers of the step.
    CHECK(
        equal(fixture.by_step({cases[1]}, 25, 25, step)[0], fixture.by_conversation(cases[1], 25)));
  }
}

TEST_CASE("a step says where the logits are not finite", "[decode_step]") {
  const c10::InferenceMode inference;
  TinyDecoder tiny = make_tiny_decoder();
  tiny.tensors["model.norm.weight"] =
      at::full({tiny.config.hidden_size}, std::numeric_limits<float>::quiet_NaN());
  const Decoder decoder(tiny.config, tiny.sink_dims, WeightReader(tiny.tensors, ComputeTarget()));
  KvCache cache(tiny.config, decoder.target());
  cache.reserve(4);
  for (const double temperature : {0.0, 1.0}) {
    DecodeStep step(decoder, 1, false);
    step.begin({{3, 0, 0, 0, var_params(false), generation_params(temperature, 0, 1.0)}}, cache);
    CHECK(step.run() == std::vector<std::int64_t>{-1});
  }
}
