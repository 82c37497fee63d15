// The ops as the dispatcher holds them: schemas, keys, Meta shapes, and typed functions that equal
// the ops.

#include <ATen/core/dispatch/Dispatcher.h>

#include <thread>

#include "unit/ops/support.h"

namespace libvar::test {
namespace {

c10::OperatorHandle find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
}

template <typename... Arguments>
std::vector<c10::IValue> call_op(const char* name, Arguments&&... arguments) {
  std::vector<c10::IValue> stack = {c10::IValue(std::forward<Arguments>(arguments))...};
  find(name).callBoxed(&stack);
  return stack;
}

// Sizes, strides and dtype of the CPU result and of the Meta result are the same.
bool same_form(const at::Tensor& cpu, const at::Tensor& meta) {
  return meta.is_meta() && cpu.sizes() == meta.sizes() && cpu.strides() == meta.strides() &&
         cpu.scalar_type() == meta.scalar_type();
}

TEST_CASE("every public op is registered with its pinned schema on CPU and Meta", "[dispatch]") {
  ensure_ops_registered();
  const std::pair<const char*, const char*> schemas[] = {
      {"sink_scores",
       "libvar::sink_scores(Tensor hidden, Tensor sink_dims, float eps=9.9999999999999995e-07) -> "
       "Tensor"},
      {"rms_norm_sink_scores",
       "libvar::rms_norm_sink_scores(Tensor hidden, Tensor weight, Tensor sink_dims, "
       "float eps=9.9999999999999995e-07) -> (Tensor, Tensor)"},
      {"add_rms_norm_sink_scores",
       "libvar::add_rms_norm_sink_scores(Tensor(a!) residual, Tensor delta, Tensor weight, Tensor "
       "sink_dims, "
       "float eps=9.9999999999999995e-07) -> (Tensor, Tensor)"},
      {"skinny_linear",
       "libvar::skinny_linear(Tensor input, Tensor weight, Tensor? bias=None, Tensor? "
       "weight_scale=None) -> Tensor"},
      {"skinny_swiglu",
       "libvar::skinny_swiglu(Tensor input, Tensor gate_weight, Tensor up_weight, Tensor? "
       "gate_bias=None, Tensor? up_bias=None, Tensor? gate_scale=None, Tensor? up_scale=None) -> "
       "Tensor"},
      {"rotate_and_cache",
       "libvar::rotate_and_cache(Tensor query, Tensor key, Tensor value, Tensor sink_scores, "
       "Tensor cos, Tensor sin, Tensor places, Tensor(a!) key_cache, Tensor(b!) value_cache, "
       "Tensor(c!) sink_score_cache) -> Tensor"},
      {"redistribute",
       "libvar::redistribute(Tensor probs, Tensor sink_scores, Tensor visual_mask, Tensor? "
       "row_mask=None, *, "
       "float tau=20., float rho=0.80000000000000004, float p=0.59999999999999998, "
       "float min_visual_mass=0.20000000000000001, float ratio_epsilon=0.) -> Tensor"},
      {"redistribute_",
       "libvar::redistribute_(Tensor(a!) probs, Tensor sink_scores, Tensor visual_mask, Tensor? "
       "row_mask=None, *, "
       "float tau=20., float rho=0.80000000000000004, float p=0.59999999999999998, "
       "float min_visual_mass=0.20000000000000001, float ratio_epsilon=0.) -> Tensor(a!)"},
      {"attention",
       "libvar::attention(Tensor query, Tensor key, Tensor value, Tensor sink_scores, Tensor "
       "visual_mask, "
       "Tensor? row_mask=None, Tensor? kv_lengths=None, *, float scale, float tau=20., "
       "float rho=0.80000000000000004, float p=0.59999999999999998, "
       "float min_visual_mass=0.20000000000000001, float ratio_epsilon=0.) -> Tensor"},
  };
  for (const auto& [name, schema] : schemas) {
    const c10::OperatorHandle op = find((std::string("libvar::") + name).c_str());
    CHECK(c10::toString(op.schema()) == schema);
    CHECK(op.hasKernelForDispatchKey(c10::DispatchKey::CPU));
    CHECK(op.hasKernelForDispatchKey(c10::DispatchKey::Meta));
  }
}

TEST_CASE("the defaults of the schemas are those of the rule", "[dispatch]") {
  const RedistributionRule rule;
  for (const char* name : {"libvar::redistribute", "libvar::redistribute_", "libvar::attention"}) {
    const c10::FunctionSchema& schema = find(name).schema();
    const auto default_of = [&](const char* argument) {
      const auto index = schema.argumentIndexWithName(argument);
      REQUIRE(index.has_value());
      return static_cast<float>(
          schema.arguments()[static_cast<std::size_t>(*index)].default_value()->toDouble());
    };
    CHECK(default_of("tau") == rule.tau);
    CHECK(default_of("rho") == rule.rho);
    CHECK(default_of("p") == rule.p);
    CHECK(default_of("min_visual_mass") == rule.min_visual_mass);
    CHECK(default_of("ratio_epsilon") == rule.ratio_epsilon);
  }
}

TEST_CASE("typed functions equal the ops bit for bit", "[dispatch]") {
  const at::Generator generator = seeded(600);
  const at::Tensor hidden = at::randn({2, 3, 40}, generator, at::kFloat);
  const at::Tensor weight = at::randn({40}, generator, at::kFloat);
  const at::Tensor sink_dims = at::tensor({3, 7}, at::kLong);
  CHECK(same_bits(call_op("libvar::sink_scores", hidden, sink_dims, 1e-5)[0].toTensor(),
                  sink_scores(hidden, sink_dims, 1e-5)));
  const auto norm = call_op("libvar::rms_norm_sink_scores", hidden, weight, sink_dims, 1e-5);
  const auto [normed, phi] = rms_norm_sink_scores(hidden, weight, sink_dims, 1e-5);
  CHECK(same_bits(norm[0].toTensor(), normed));
  CHECK(same_bits(norm[1].toTensor(), phi));
  at::Tensor residual = hidden.clone(), other = hidden.clone();
  const auto added =
      call_op("libvar::add_rms_norm_sink_scores", residual, hidden, weight, sink_dims, 1e-5);
  const auto [added_normed, added_phi] =
      add_rms_norm_sink_scores(other, hidden, weight, sink_dims, 1e-5);
  CHECK(same_bits(residual, other));
  CHECK(same_bits(added[0].toTensor(), added_normed));
  CHECK(same_bits(added[1].toTensor(), added_phi));

  const at::Tensor matrix = at::randn({9, 40}, generator, at::kFloat);
  const at::Tensor bias = at::randn({9}, generator, at::kFloat);
  CHECK(
      same_bits(call_op("libvar::skinny_linear", hidden, matrix, bias, c10::IValue())[0].toTensor(),
                skinny_linear(hidden, matrix, bias)));
  const at::Tensor integers = matrix.mul(40.0).to(at::kChar), scale = bias.abs();
  CHECK(same_bits(
      call_op("libvar::skinny_linear", hidden, integers, c10::IValue(), scale)[0].toTensor(),
      skinny_linear(hidden, integers, std::nullopt, scale)));
  const at::Tensor other_bias = bias.neg(), other_scale = scale.mul(2.0);
  CHECK(same_bits(call_op("libvar::skinny_swiglu", hidden, matrix, matrix.neg(), bias, other_bias,
                          c10::IValue(), c10::IValue())[0]
                      .toTensor(),
                  skinny_swiglu(hidden, matrix, matrix.neg(), bias, other_bias)));
  CHECK(same_bits(
      call_op("libvar::skinny_swiglu", hidden, integers, integers.neg(), c10::IValue(), bias, scale,
              other_scale)[0]
          .toTensor(),
      skinny_swiglu(hidden, integers, integers.neg(), std::nullopt, bias, scale, other_scale)));

  CHECK(same_bits(call_op("libvar::_silu_mul", hidden, hidden.neg())[0].toTensor(),
                  silu_mul(hidden, hidden.neg())));

  RedistributionRule rule;
  rule.tau = 21.0f;
  rule.rho = 0.5f;
  rule.p = 0.75f;
  rule.min_visual_mass = 0.125f;
  rule.ratio_epsilon = 0.0625f;
  const AttentionInputs in = random_attention({2, 4, 2, 12, 60, 16}, at::kFloat, 601);
  const at::Tensor row_mask = at::rand({2, 12}, generator, at::kFloat).lt(0.7);
  const at::Tensor lengths = at::tensor({60, 33}, at::kInt);
  AttentionInputs masked = in;
  masked.row_mask = row_mask;
  masked.kv_lengths = lengths;
  const at::Tensor expected = attention(masked, rule);
  CHECK(same_bits(
      call_op("libvar::attention", in.query, in.key, in.value, in.sink_scores, in.visual_mask,
              row_mask, lengths, in.scale, 21.0, 0.5, 0.75, 0.125, 0.0625)[0]
          .toTensor(),
      expected));
  CHECK_FALSE(same_bits(attention(in), expected));

  const at::Tensor probs = at::softmax(at::randn({2, 4, 12, 60}, generator, at::kFloat), -1);
  const at::Tensor moved = redistribute(probs, in.sink_scores, in.visual_mask, row_mask, rule);
  CHECK(same_bits(call_op("libvar::redistribute", probs, in.sink_scores, in.visual_mask, row_mask,
                          21.0, 0.5, 0.75, 0.125, 0.0625)[0]
                      .toTensor(),
                  moved));
  const at::Tensor target = probs.clone();
  const auto in_place = call_op("libvar::redistribute_", target, in.sink_scores, in.visual_mask,
                                row_mask, 21.0, 0.5, 0.75, 0.125, 0.0625);
  CHECK(in_place[0].toTensor().is_same(target));
  CHECK(same_bits(target, moved));
}

TEST_CASE("Meta gives the shapes, strides and dtypes of the CPU", "[dispatch]") {
  for (const at::ScalarType type : kDtypes) {
    const at::Tensor hidden = at::ones({2, 5, 3, 16}, type).permute({2, 0, 1, 3});
    const at::Tensor weight = at::ones({16}, type);
    const at::Tensor sink_dims = at::zeros({1}, at::kLong);
    const auto meta = [](const at::Tensor& tensor) { return tensor.to(at::kMeta); };
    CHECK(same_form(sink_scores(hidden, sink_dims), sink_scores(meta(hidden), meta(sink_dims))));
    const auto cpu_norm = rms_norm_sink_scores(hidden, weight, sink_dims);
    const auto meta_norm = rms_norm_sink_scores(meta(hidden), meta(weight), meta(sink_dims));
    CHECK(same_form(std::get<0>(cpu_norm), std::get<0>(meta_norm)));
    CHECK(same_form(std::get<1>(cpu_norm), std::get<1>(meta_norm)));
    at::Tensor residual = hidden.clone(), meta_residual = meta(hidden);
    const auto cpu_add = add_rms_norm_sink_scores(residual, hidden, weight, sink_dims);
    const auto meta_add =
        add_rms_norm_sink_scores(meta_residual, meta(hidden), meta(weight), meta(sink_dims));
    CHECK(same_form(std::get<0>(cpu_add), std::get<0>(meta_add)));
    CHECK(same_form(std::get<1>(cpu_add), std::get<1>(meta_add)));

    const at::Tensor few = at::ones({4, 16, 2}, type).transpose(1, 2);
    const at::Tensor matrix = at::ones({9, 16}, type);
    CHECK(same_form(skinny_linear(few, matrix), skinny_linear(meta(few), meta(matrix))));
    CHECK(same_form(skinny_swiglu(few, matrix, matrix),
                    skinny_swiglu(meta(few), meta(matrix), meta(matrix))));
    CHECK(same_form(silu_mul(hidden, hidden), silu_mul(meta(hidden), meta(hidden))));

    AttentionInputs in = random_attention({2, 4, 2, 6, 30, 8}, type, 602);
    in.query = in.query.transpose(1, 2).contiguous().transpose(1, 2);
    AttentionInputs on_meta = in;
    for (at::Tensor* tensor : {&on_meta.query, &on_meta.key, &on_meta.value, &on_meta.sink_scores,
                               &on_meta.visual_mask}) {
      *tensor = meta(*tensor);
    }
    CHECK(same_form(attention(in), attention(on_meta)));
    at::Tensor probs = at::ones({2, 6, 4, 30}, type).transpose(1, 2);
    at::Tensor meta_probs = meta(probs);
    CHECK(same_form(redistribute(probs, in.sink_scores, in.visual_mask),
                    redistribute(meta_probs, on_meta.sink_scores, on_meta.visual_mask)));
    CHECK(redistribute_(meta_probs, on_meta.sink_scores, on_meta.visual_mask).is_same(meta_probs));
  }
}

}  // namespace
}  // namespace libvar::test

TEST_CASE("weights are ready as long as one says so on the thread", "[linear]") {
  using libvar::WeightsAreReady;
  CHECK_FALSE(WeightsAreReady::on_this_thread());
  {
    const WeightsAreReady outer;
    { const WeightsAreReady inner; }
    CHECK(WeightsAreReady::on_this_thread());
    bool elsewhere = true;
    std::thread([&] { elsewhere = WeightsAreReady::on_this_thread(); }).join();
    CHECK_FALSE(elsewhere);
  }
  CHECK_FALSE(WeightsAreReady::on_this_thread());
}
