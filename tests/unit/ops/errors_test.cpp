// Every documented error of the ops and its message, on the CPU and on Meta.

#include "unit/ops/support.h"

namespace libvar::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <typename F>
std::string value_error(F&& f) {
  return message_of<c10::ValueError>(std::forward<F>(f));
}

template <typename F>
std::string type_error(F&& f) {
  return message_of<c10::TypeError>(std::forward<F>(f));
}

// The arguments of one call of each op, all right until a test changes one of them.
struct NormCall {
  at::Device device;
  at::Tensor hidden = at::ones({2, 3, 16}, device);
  at::Tensor delta = at::ones({2, 3, 16}, device);
  at::Tensor weight = at::ones({16}, device);
  at::Tensor sink_dims = at::zeros({2}, at::TensorOptions(device).dtype(at::kLong));
  double eps = 1e-6;

  void scores() const { sink_scores(hidden, sink_dims, eps); }

  void norm() const { rms_norm_sink_scores(hidden, weight, sink_dims, eps); }

  void add() { add_rms_norm_sink_scores(hidden, delta, weight, sink_dims, eps); }
};

struct LinearCall {
  at::Device device;
  at::Tensor input = at::ones({2, 4, 16}, device);
  at::Tensor weight = at::ones({5, 16}, device);
  std::optional<at::Tensor> bias = at::ones({5}, device);
  std::optional<at::Tensor> scale = {};

  void call() const { skinny_linear(input, weight, bias, scale); }
};

struct SwigluCall {
  at::Device device;
  at::Tensor input = at::ones({2, 4, 16}, device);
  at::Tensor gate = at::ones({5, 16}, device);
  at::Tensor up = at::ones({5, 16}, device);
  std::optional<at::Tensor> gate_bias = {}, up_bias = at::ones({5}, device);
  std::optional<at::Tensor> gate_scale = {}, up_scale = {};

  void call() const { skinny_swiglu(input, gate, up, gate_bias, up_bias, gate_scale, up_scale); }
};

struct RotaryCall {
  at::Device device;
  RotaryInputs in = {at::ones({2, 4, 3, 16}, device), at::ones({2, 2, 3, 16}, device),
                     at::ones({2, 2, 3, 16}, device), at::ones({2, 3}, device),
                     at::ones({1, 3, 16}, device),    at::ones({1, 3, 16}, device)};
  at::Tensor places = at::zeros({2}, at::TensorOptions(device).dtype(at::kLong));
  at::Tensor keys = at::ones({2, 2, 8, 16}, device);
  at::Tensor values = at::ones({2, 2, 8, 16}, device);
  at::Tensor scores = at::ones({2, 8}, device);

  void call() { rotate_and_cache(in, places, keys, values, scores); }
};

struct RedistributeCall {
  at::Device device;
  at::Tensor probs = at::ones({2, 4, 3, 8}, device);
  at::Tensor scores = at::ones({2, 8}, device);
  at::Tensor visual = at::ones({2, 8}, at::TensorOptions(device).dtype(at::kBool));
  std::optional<at::Tensor> rows = at::ones({2, 3}, at::TensorOptions(device).dtype(at::kBool));
  RedistributionRule rule = {};

  void call() const { redistribute(probs, scores, visual, rows, rule); }

  void in_place() { redistribute_(probs, scores, visual, rows, rule); }
};

struct AttentionCall {
  at::Device device;
  AttentionInputs in;
  RedistributionRule rule;
  std::optional<at::Tensor> params;
  AttentionTrace trace;

  explicit AttentionCall(at::Device where) : device(where) {
    in.query = at::ones({2, 4, 3, 16}, device);
    in.key = at::ones({2, 2, 8, 16}, device);
    in.value = at::ones({2, 2, 8, 16}, device);
    in.sink_scores = at::ones({2, 8}, device);
    in.visual_mask = at::ones({2, 8}, at::TensorOptions(device).dtype(at::kBool));
  }

  at::Tensor ones(at::IntArrayRef sizes, at::ScalarType type) const {
    return at::ones(sizes, at::TensorOptions(device).dtype(type));
  }

  void call() { attention(in, rule, params, &trace); }
};

const at::Device kDevices[] = {at::kCPU, at::kMeta};

TEST_CASE("the norm ops refuse what their contract excludes", "[errors]") {
  for (const at::Device device : kDevices) {
    INFO(device);
    const NormCall good{device};
    NormCall bad = good;
    CHECK(value_error([&] { bad.norm(), bad.scores(), bad.add(); }) == "no exception");

    bad.hidden = good.hidden.to(at::kDouble);
    CHECK(type_error([&] { bad.scores(); }) ==
          "sink_scores: expected hidden of dtype Float, Half or BFloat16, got Double");
    CHECK(
        type_error([&] { bad.add(); }) ==
        "add_rms_norm_sink_scores: expected residual of dtype Float, Half or BFloat16, got Double");
    bad = good;
    bad.hidden = at::ones({2, 0}, device);
    CHECK(value_error([&] { bad.scores(); }) ==
          "sink_scores: expected hidden of shape [..., D] with D > 0, got [2, 0]");
    bad.hidden = at::ones({}, device);
    CHECK(value_error([&] { bad.scores(); }) ==
          "sink_scores: expected hidden of shape [..., D] with D > 0, got []");
    bad.hidden = at::ones({16, 3}, device).t();
    CHECK(value_error([&] { bad.scores(); }) ==
          "sink_scores: expected hidden with a contiguous last dimension, got strides [1, 3]");
    bad = good;
    bad.sink_dims = good.sink_dims.to(at::kInt);
    CHECK(type_error([&] { bad.norm(); }) ==
          "rms_norm_sink_scores: expected sink_dims of dtype Long, got Int");
    bad.sink_dims = good.sink_dims.view({1, 2});
    CHECK(value_error([&] { bad.norm(); }) ==
          "rms_norm_sink_scores: expected sink_dims of shape [S], got [1, 2]");
    bad.sink_dims = good.sink_dims.narrow(0, 0, 0);
    CHECK(value_error([&] { bad.scores(); }) ==
          "sink_scores: expected 1 to 8 sink dimensions, got 0");
    CHECK(value_error([&] { bad.norm(); }) == "no exception");
    bad.sink_dims = good.sink_dims.repeat({5}).narrow(0, 0, 9);
    CHECK(value_error([&] { bad.norm(); }) ==
          "rms_norm_sink_scores: expected 0 to 8 sink dimensions, got 9");
    bad = good;
    for (const double eps : {0.0, -1.0, kNan, std::numeric_limits<double>::infinity()}) {
      bad.eps = eps;
      CHECK(value_error([&] { bad.scores(); }).rfind("sink_scores: expected eps > 0, got ", 0) ==
            0);
    }
    bad = good;
    bad.weight = good.weight.to(at::kHalf);
    CHECK(type_error([&] { bad.norm(); }) ==
          "rms_norm_sink_scores: expected weight of dtype Float, got Half");
    bad.weight = at::ones({15}, device);
    CHECK(value_error([&] { bad.norm(); }) ==
          "rms_norm_sink_scores: expected weight of shape [16], got [15]");
    bad = good;
    bad.delta = good.delta.to(at::kHalf);
    CHECK(type_error([&] { bad.add(); }) ==
          "add_rms_norm_sink_scores: expected delta of dtype Float, got Half");
    bad.delta = at::ones({2, 1, 16}, device);
    CHECK(value_error([&] { bad.add(); }) ==
          "add_rms_norm_sink_scores: expected delta of shape [2, 3, 16], got [2, 1, 16]");
  }
}

TEST_CASE("the norm ops refuse sink dimensions outside the hidden size on the CPU", "[errors]") {
  NormCall bad{at::kCPU};
  bad.sink_dims = at::tensor({3, 16}, at::kLong);
  CHECK(value_error([&] { bad.scores(); }) ==
        "sink_scores: expected sink_dims[1] in [0, 16), got 16");
  CHECK(value_error([&] { bad.norm(); }) ==
        "rms_norm_sink_scores: expected sink_dims[1] in [0, 16), got 16");
  bad.sink_dims = at::tensor({-1}, at::kLong);
  CHECK(value_error([&] { bad.add(); }) ==
        "add_rms_norm_sink_scores: expected sink_dims[0] in [0, 16), got -1");
}

TEST_CASE("rotate_and_cache refuses what its contract excludes", "[errors]") {
  for (const at::Device device : {at::Device(at::kCPU), at::Device(at::kMeta)}) {
    const RotaryCall good{device};
    RotaryCall bad = good;
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad.in.query = good.in.query.to(at::kDouble);
    CHECK(type_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected query of dtype Float, Half or BFloat16, got Double");
    bad.in.query = at::ones({2, 4, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected query of shape [B, H, Q, Dh], got [2, 4, 16]");
    bad.in.query = at::ones({2, 4, 3, 15}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected query of shape [B, H, Q, Dh] with an even Dh > 0, got [2, 4, "
          "3, 15]");
    bad = good;
    bad.in.key = at::ones({2, 2, 16, 3}, device).transpose(2, 3);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected key with a contiguous last dimension, got strides [96, 48, "
          "1, 3]");
    bad = good;
    bad.in.value = at::ones({2, 2, 4, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected value of shape [2, 2, 3, 16], got [2, 2, 4, 16]");
    bad = good;
    bad.in.cos = at::ones({3, 3, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected cos of 1 or 2 sequences, got 3");
    bad = good;
    bad.in.sin = at::ones({2, 3, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected sin of shape [1, 3, 16], got [2, 3, 16]");
    bad = good;
    bad.places = at::zeros({2}, device);
    CHECK(type_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected places of dtype Long, got Float");
    bad = good;
    bad.values = at::ones({2, 2, 7, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected value_cache of shape [2, 2, 8, 16], got [2, 2, 7, 16]");
    bad = good;
    bad.scores = at::ones({2, 7}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "rotate_and_cache: expected sink_score_cache of shape [2, 8], got [2, 7]");
  }
  RotaryCall bad{at::kCPU};
  bad.places = at::tensor({0, 6}, at::kLong);
  CHECK(value_error([&] { bad.call(); }) ==
        "rotate_and_cache: expected places[1] in [0, 5], got 6");
}

TEST_CASE("skinny_linear refuses what its contract excludes", "[errors]") {
  for (const at::Device device : kDevices) {
    INFO(device);
    const LinearCall good{device};
    LinearCall bad = good;
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad.input = good.input.to(at::kDouble);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected input of dtype Float, Half or BFloat16, got Double");
    bad.input = at::ones({2, 0}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected input of shape [..., K] with K > 0, got [2, 0]");
    bad.input = at::ones({}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected input of shape [..., K] with K > 0, got []");
    bad.input = at::ones({3, 3, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected at most 8 rows of input, got 9");
    bad = good;
    bad.weight = good.weight.to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight of dtype Float, got Half");
    bad.weight = at::ones({16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight of shape [N, K], got [16]");
    bad.weight = at::ones({5, 15}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight of shape [5, 16], got [5, 15]");
    bad.weight = at::ones({16, 5}, device).t();
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight with a contiguous last dimension, got strides [1, 5]");
    bad = good;
    bad.bias = good.bias->to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected bias of dtype Float, got Half");
    bad.bias = at::ones({4}, device);
    CHECK(value_error([&] { bad.call(); }) == "skinny_linear: expected bias of shape [5], got [4]");
    bad.bias = std::nullopt;
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad = good;
    bad.weight = good.weight.to(at::kChar);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight of dtype Float, got Char");
    bad.scale = at::ones({5}, device);
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad.weight = good.weight;
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight of dtype Char, got Float");
    bad.weight = good.weight.to(at::kChar);
    bad.scale = bad.scale->to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight_scale of dtype Float, got Half");
    bad.scale = at::ones({5, 1}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_linear: expected weight_scale of shape [5], got [5, 1]");
  }
}

TEST_CASE("skinny_swiglu refuses what its contract excludes", "[errors]") {
  for (const at::Device device : kDevices) {
    INFO(device);
    const SwigluCall good{device};
    SwigluCall bad = good;
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad.input = at::ones({3, 3, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected at most 8 rows of input, got 9");
    bad = good;
    bad.gate = at::ones({5, 15}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected gate_weight of shape [5, 16], got [5, 15]");
    bad = good;
    bad.up = at::ones({6, 16}, device);
    bad.up_bias = std::nullopt;
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected up_weight of shape [5, 16], got [6, 16]");
    bad.up = good.up.to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected up_weight of dtype Float, got Half");
    bad = good;
    bad.gate_bias = at::ones({4}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected gate_bias of shape [5], got [4]");
    bad = good;
    bad.up_bias = bad.up_bias->to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected up_bias of dtype Float, got Half");
    bad = good;
    bad.gate_scale = at::ones({5}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected scales for both weights or for none, got gate_scale alone");
    bad.up_scale = at::ones({5}, device);
    CHECK(type_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected gate_weight of dtype Char, got Float");
    bad.gate = good.gate.to(at::kChar);
    bad.up = good.up.to(at::kChar);
    CHECK(value_error([&] { bad.call(); }) == "no exception");
    bad.up_scale = at::ones({6}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "skinny_swiglu: expected up_scale of shape [5], got [6]");
  }
  SwigluCall mixed{at::kMeta};
  mixed.up = at::ones({5, 16});
  CHECK(value_error([&] { mixed.call(); }) == "skinny_swiglu: expected up_weight on meta, got cpu");
}

TEST_CASE("the ops refuse tensors on different devices", "[errors]") {
  NormCall norm{at::kMeta};
  norm.sink_dims = at::zeros({2}, at::kLong);
  CHECK(value_error([&] { norm.scores(); }) == "sink_scores: expected sink_dims on meta, got cpu");
  LinearCall linear{at::kMeta};
  linear.weight = at::ones({5, 16});
  CHECK(value_error([&] { linear.call(); }) == "skinny_linear: expected weight on meta, got cpu");
  RedistributeCall redistribution{at::kMeta};
  redistribution.visual = at::ones({2, 8}, at::kBool);
  CHECK(value_error([&] { redistribution.call(); }) ==
        "redistribute: expected visual_mask on meta, got cpu");
  AttentionCall attending(at::kMeta);
  attending.in.value = at::ones({2, 2, 8, 16});
  CHECK(value_error([&] { attending.call(); }) == "attention: expected value on meta, got cpu");
}

TEST_CASE("redistribute refuses what its contract excludes", "[errors]") {
  for (const at::Device device : kDevices) {
    INFO(device);
    const RedistributeCall good{device};
    RedistributeCall bad = good;
    CHECK(value_error([&] { bad.call(), bad.in_place(); }) == "no exception");

    bad.probs = good.probs.to(at::kDouble);
    CHECK(type_error([&] { bad.call(); }) ==
          "redistribute: expected probs of dtype Float, Half or BFloat16, got Double");
    CHECK(type_error([&] { bad.in_place(); }) ==
          "redistribute_: expected probs of dtype Float, Half or BFloat16, got Double");
    bad.probs = good.probs[0];
    CHECK(value_error([&] { bad.call(); }) ==
          "redistribute: expected probs of shape [B, H, Q, K], got [4, 3, 8]");
    bad.probs = good.probs.transpose(2, 3);
    CHECK(value_error([&] { bad.call(); }) ==
          "redistribute: expected probs with a contiguous last dimension, got strides [96, 24, 1, "
          "8]");
    bad = good;
    bad.scores = good.scores.to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "redistribute: expected sink_scores of dtype Float, got Half");
    bad.scores = at::ones({2, 9}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "redistribute: expected sink_scores of shape [2, 8], got [2, 9]");
    bad = good;
    bad.visual = good.visual.to(at::kByte);
    CHECK(type_error([&] { bad.call(); }) ==
          "redistribute: expected visual_mask of dtype Bool, got Byte");
    bad.visual = good.visual[0];
    CHECK(value_error([&] { bad.call(); }) ==
          "redistribute: expected visual_mask of shape [2, 8], got [8]");
    bad = good;
    bad.rows = good.rows->to(at::kFloat);
    CHECK(type_error([&] { bad.call(); }) ==
          "redistribute: expected row_mask of dtype Bool, got Float");
    bad.rows = good.visual;
    CHECK(value_error([&] { bad.call(); }) ==
          "redistribute: expected row_mask of shape [2, 3], got [2, 8]");
  }
}

TEST_CASE("the ops refuse parameters out of range", "[errors]") {
  for (const at::Device device : kDevices) {
    RedistributeCall bad{device};
    AttentionCall attending(device);
    const auto message = [&](auto&& change) {
      bad.rule = {};
      change(bad.rule);
      attending.rule = bad.rule;
      const std::string text = value_error([&] { bad.call(); });
      CHECK(value_error([&] { bad.in_place(); }) ==
            "redistribute_" + text.substr(std::min<std::size_t>(12, text.size())));
      CHECK(value_error([&] { attending.call(); }) ==
            "attention" + text.substr(std::min<std::size_t>(12, text.size())));
      return text;
    };
    const float nan = static_cast<float>(kNan);
    CHECK(message([&](auto& rule) { rule.tau = nan; }) ==
          "redistribute: expected tau >= 0, got nan");
    CHECK(message([&](auto& rule) { rule.tau = -1.0f; }) ==
          "redistribute: expected tau >= 0, got -1");
    CHECK(message([&](auto& rule) { rule.rho = 1.5f; }) ==
          "redistribute: expected rho in [0, 1], got 1.5");
    CHECK(message([&](auto& rule) { rule.rho = nan; }) ==
          "redistribute: expected rho in [0, 1], got nan");
    CHECK(message([&](auto& rule) { rule.p = 2.0f; }) ==
          "redistribute: expected p in [0, 1], got 2");
    CHECK(message([&](auto& rule) { rule.p = -0.5f; }) ==
          "redistribute: expected p in [0, 1], got -0.5");
    CHECK(message([&](auto& rule) { rule.min_visual_mass = 1.25f; }) ==
          "redistribute: expected min_visual_mass in [0, 1], got 1.25");
    CHECK(message([&](auto& rule) { rule.ratio_epsilon = -1.0f; }) ==
          "redistribute: expected a finite ratio_epsilon >= 0, got -1");
    CHECK(message([&](auto& rule) { rule.ratio_epsilon = kInfinity; }) ==
          "redistribute: expected a finite ratio_epsilon >= 0, got inf");
    CHECK(message([&](auto& rule) { rule.sources = 16; }) ==
          "redistribute: expected sources to be a set of the 4 token classes, got 16");
    CHECK(message([&](auto& rule) { rule.targets = 3; }) ==
          "redistribute: expected no token class in both sources and targets, got sources 5 and "
          "targets 3");
    CHECK(message([&](auto& rule) { rule.head_rule = static_cast<HeadRule>(3); }) ==
          "redistribute: expected head_rule 0 (ratio), 1 (all) or 2 (none), got 3");
    bad.rule = {};
    bad.rule.tau = kInfinity;
    bad.rule.rho = 1.0f;
    bad.rule.p = 0.0f;
    bad.rule.min_visual_mass = 0.0f;
    CHECK(value_error([&] { bad.call(); }) == "no exception");
  }
}

TEST_CASE("attention refuses tensors that its contract excludes", "[errors]") {
  for (const at::Device device : kDevices) {
    INFO(device);
    const AttentionCall good(device);
    AttentionCall bad = good;
    bad.in.row_mask = good.ones({2, 3}, at::kBool);
    bad.in.kv_lengths = good.ones({2}, at::kInt);
    bad.params = good.ones({2, 4}, at::kFloat);
    bad.trace.selected = good.ones({2, 4, 3}, at::kBool);
    bad.trace.class_mass = good.ones({2, 4, 3, 4}, at::kFloat);
    CHECK(value_error([&] { bad.call(); }) == "no exception");

    bad = good;
    bad.in.query = good.in.query.to(at::kDouble);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected query of dtype Float, Half or BFloat16, got Double");
    bad.in.query = good.in.query[0];
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected query of shape [B, H, Q, Dh], got [4, 3, 16]");
    bad.in.query = at::ones({2, 4, 16, 3}, device).transpose(2, 3);
    CHECK(
        value_error([&] { bad.call(); }) ==
        "attention: expected query with a contiguous last dimension, got strides [192, 48, 1, 3]");
    bad.in.query = at::ones({2, 4, 3, 0}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected query of shape [B, H, Q, Dh] with Dh > 0, got [2, 4, 3, 0]");
    bad.in.query = at::ones({2, 3, 3, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected a number of query heads that is a multiple of the number of key "
          "heads, got 3 and 2");
    bad = good;
    bad.in.key = good.in.key.to(at::kHalf);
    CHECK(type_error([&] { bad.call(); }) == "attention: expected key of dtype Float, got Half");
    bad.in.key = good.in.key[0];
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected key of shape [B, H_kv, K, Dh], got [2, 8, 16]");
    bad.in.key = at::ones({2, 0, 8, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected a number of query heads that is a multiple of the number of key "
          "heads, got 4 and 0");
    bad.in.key = at::ones({2, 2, 8, 15}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected key of shape [2, 2, 8, 16], got [2, 2, 8, 15]");
    bad = good;
    bad.in.value = at::ones({2, 2, 7, 16}, device);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected value of shape [2, 2, 8, 16], got [2, 2, 7, 16]");
    bad.in.value = at::ones({2, 2, 16, 8}, device).transpose(2, 3);
    CHECK(
        value_error([&] { bad.call(); }) ==
        "attention: expected value with a contiguous last dimension, got strides [256, 128, 1, 8]");
    bad = good;
    bad.in.sink_scores = good.ones({2, 8}, at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected sink_scores of dtype Float, got Half");
    bad.in.sink_scores = good.ones({8}, at::kFloat);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected sink_scores of shape [2, 8], got [8]");
    bad = good;
    bad.in.visual_mask = good.ones({2, 8}, at::kLong);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected visual_mask of dtype Bool, got Long");
    bad = good;
    bad.in.row_mask = good.ones({2, 8}, at::kBool);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected row_mask of shape [2, 3], got [2, 8]");
    bad = good;
    bad.in.kv_lengths = good.ones({2}, at::kLong);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected kv_lengths of dtype Int, got Long");
    bad.in.kv_lengths = good.ones({3}, at::kInt);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected kv_lengths of shape [2], got [3]");
    bad = good;
    bad.params = good.ones({2, 3}, at::kFloat);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected params of shape [2, 4], got [2, 3]");
    bad.params = good.ones({2, 4}, at::kDouble);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected params of dtype Float, got Double");
    bad = good;
    bad.trace.selected = good.ones({2, 4, 4}, at::kBool);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected selected of shape [2, 4, 3], got [2, 4, 4]");
    bad.trace.selected = good.ones({4, 2, 3}, at::kBool).transpose(0, 1);
    CHECK(value_error([&] { bad.call(); }) ==
          "attention: expected a contiguous selected, got strides [3, 6, 1]");
    bad = good;
    bad.trace.class_mass = good.ones({2, 4, 3, 4}, at::kHalf);
    CHECK(type_error([&] { bad.call(); }) ==
          "attention: expected class_mass of dtype Float, got Half");
    bad = good;
    bad.in.scale = kNan;
    CHECK(value_error([&] { bad.call(); }) == "attention: expected a finite scale, got nan");
  }
}

TEST_CASE("attention refuses lengths and parameters out of range on the CPU", "[errors]") {
  AttentionCall bad(at::kCPU);
  bad.in.kv_lengths = at::tensor({8, 9}, at::kInt);
  CHECK(value_error([&] { bad.call(); }) == "attention: expected kv_lengths[1] in [0, 8], got 9");
  bad.in.kv_lengths = at::tensor({-1, 8}, at::kInt);
  CHECK(value_error([&] { bad.call(); }) == "attention: expected kv_lengths[0] in [0, 8], got -1");
  bad.in.kv_lengths.reset();
  bad.params = at::tensor({20.0f, 0.8f, 0.6f, 0.2f, 20.0f, 0.8f, 2.0f, 0.2f}).view({2, 4});
  CHECK(value_error([&] { bad.call(); }) ==
        "attention: expected params[1][2] (p) in [0, 1], got 2");
  bad.params = at::tensor({static_cast<float>(kNan), 0.8f, 0.6f, 0.2f, 20.0f, 0.8f, 0.5f, 0.2f})
                   .view({2, 4});
  CHECK(value_error([&] { bad.call(); }) == "attention: expected params[0][0] (tau) >= 0, got nan");
}

TEST_CASE("the ops in place refuse tensors whose elements share memory", "[errors]") {
  at::Tensor probs = at::ones({1, 1, 3, 8}).expand({1, 4, 3, 8});
  CHECK_THROWS_WITH(redistribute_(probs, at::ones({1, 8}), at::ones({1, 8}, at::kBool)),
                    Catch::Contains("single memory location"));
  at::Tensor residual = at::ones({1, 8}).expand({3, 8});
  CHECK_THROWS_WITH(add_rms_norm_sink_scores(residual, at::ones({3, 8}), at::ones({8}),
                                             at::zeros({1}, at::kLong)),
                    Catch::Contains("single memory location"));
}

}  // namespace
}  // namespace libvar::test
