#include <ATen/TensorOperators.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <string>
#include <vector>

#include "catch.h"
#include "decoder/kv_cache.h"
#include "decoder/rotary.h"
#include "generate/prompt_ids.h"
#include "libvar/error.h"
#include "resource_errors.h"
#include "unit/model/tiny_decoder.h"
#include "vision/activation.h"
#include "vision/projector.h"
#include "vision/vision_transformer.h"

using namespace libvar;
using namespace libvar::testing;

TEST_CASE("rotary embedding turns each pair by its angle", "[rotary]") {
  DecoderConfig config;
  config.head_dim = 10;
  config.max_positions = 40;
  config.rope_theta = 500.0;
  const RotaryEmbedding rotary(config, ComputeTarget());
  const at::Tensor positions = at::tensor({3, 0, 39}, at::kLong).view({1, 3});
  const at::Tensor heads = random_tensor({1, 2, 3, 10}, 9);
  const RotaryAngles angles = rotary.angles(positions);
  config.num_layers = 1;
  config.num_kv_heads = 2;
  KvCache cache(config, ComputeTarget());
  cache.reserve(3);
  const at::Tensor turned =
      cache.store(0, {heads, heads, heads, at::zeros({1, 3}), angles.cos, angles.sin},
                  at::zeros({1}, at::kLong));
  CHECK(at::equal(cache.keys(0, 3), turned));
  const auto x = heads.accessor<float, 4>(), y = turned.accessor<float, 4>();
  for (int head = 0; head < 2; ++head) {
    for (int row = 0; row < 3; ++row) {
      for (int i = 0; i < 5; ++i) {
        const double angle =
            static_cast<double>(positions[0][row].item<std::int64_t>()) * std::pow(500.0, -i / 5.0);
        const double a = x[0][head][row][i], b = x[0][head][row][i + 5];
        CHECK(y[0][head][row][i] == Approx(a * std::cos(angle) - b * std::sin(angle)).margin(2e-5));
        CHECK(y[0][head][row][i + 5] ==
              Approx(b * std::cos(angle) + a * std::sin(angle)).margin(2e-5));
      }
    }
  }
}

TEST_CASE("rotary sections take their angles from one coordinate each", "[rotary]") {
  DecoderConfig config;
  config.head_dim = 12;
  config.max_positions = 40;
  config.rope_theta = 500.0;
  config.rope_factor = 2.0;
  config.rope_sections = {1, 2, 3};
  const RotaryEmbedding rotary(config, ComputeTarget());
  const at::Tensor positions = at::tensor({5, 30, 7, 8, 9, 2}, at::kLong).view({3, 2});
  const RotaryAngles angles = rotary.angles(positions);
  REQUIRE(angles.cos.sizes() == at::IntArrayRef({1, 2, 12}));
  const int axis[] = {0, 1, 1, 2, 2, 2};
  for (int row = 0; row < 2; ++row) {
    for (int i = 0; i < 12; ++i) {
      const double n = static_cast<double>(positions[axis[i % 6]][row].item<std::int64_t>()) / 2.0;
      const double angle = n * std::pow(500.0, -(i % 6) / 6.0);
      CHECK(angles.cos[0][row][i].item<float>() == Approx(std::cos(angle)).margin(2e-6));
      CHECK(angles.sin[0][row][i].item<float>() == Approx(std::sin(angle)).margin(2e-6));
    }
  }
}

TEST_CASE("the cache keeps what was stored when it grows", "[cache]") {
  DecoderConfig config;
  config.num_layers = 2;
  config.num_kv_heads = 3;
  config.head_dim = 4;
  config.max_positions = 100;
  KvCache cache(config, ComputeTarget());
  cache.reserve(6);
  CHECK(cache.capacity() == 6);
  cache.mark_visual(1, 3);
  const at::Tensor k = random_tensor({1, 3, 5, 4}, 1), v = random_tensor({1, 3, 5, 4}, 2),
                   phi = random_tensor({1, 5}, 3);
  const auto store = [&](std::int64_t layer, const at::Tensor& key, const at::Tensor& value,
                         const at::Tensor& scores, std::int64_t place) {
    const at::Tensor unturned = at::ones({1, key.size(2), 4});
    cache.store(layer, {key, key, value, scores, unturned, at::zeros_like(unturned)},
                at::full({1}, place, at::kLong));
  };
  for (std::int64_t layer = 0; layer < 2; ++layer)
    store(layer, k + layer, v + layer, phi + layer, 0);
  cache.advance(5);
  cache.reserve(6);
  CHECK(cache.capacity() == 6);
  cache.reserve(7);
  CHECK(cache.capacity() == 9);  // half as much again: a conversation will go on
  cache.reserve(80);
  CHECK(cache.capacity() == 80);
  store(1, k.narrow(2, 0, 1), v.narrow(2, 0, 1), at::zeros({1, 1}), 5);
  cache.advance(1);
  CHECK(cache.length() == 6);
  CHECK(at::equal(cache.keys(1, 5), k + 1));
  CHECK(at::equal(cache.values(0, 5), v));
  CHECK(at::equal(cache.values(1, 6).narrow(2, 5, 1), v.narrow(2, 0, 1)));
  CHECK(at::equal(cache.sink_scores(1, 5), phi + 1));
  CHECK(cache.sink_scores(1, 6)[0][5].item<float>() == 0.0f);
  CHECK(at::equal(cache.visual_mask(6),
                  at::tensor({0, 1, 1, 0, 0, 0}, at::kLong).to(at::kBool).unsqueeze(0)));
  cache.clear();
  CHECK(cache.length() == 0);
  CHECK(!cache.visual_mask(80).any().item<bool>());
}

TEST_CASE("activations equal their formulas", "[vision]") {
  const at::Tensor x = random_tensor({50}, 4, 2.0).to(at::kDouble);
  const auto check = [&](Activation activation, auto formula) {
    const at::Tensor y = activate(activation, x);
    for (std::int64_t i = 0; i < x.numel(); ++i) {
      CHECK(y[i].item<double>() == Approx(formula(x[i].item<double>())).margin(1e-12));
    }
  };
  check(Activation::kQuickGelu, [](double v) { return v / (1 + std::exp(-1.702 * v)); });
  check(Activation::kGelu, [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); });
  check(Activation::kGeluTanh, [](double v) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2.0 / M_PI) * (v + 0.044715 * v * v * v)));
  });
  check(Activation::kSilu, [](double v) { return v / (1 + std::exp(-v)); });
  check(Activation::kRelu, [](double v) { return v > 0 ? v : 0; });
}

namespace {

VisionConfig tiny_vision() {
  VisionConfig config;
  config.hidden_size = 12;
  config.intermediate_size = 20;
  config.num_layers = 2;
  config.num_heads = 3;
  config.image_size = 12;
  config.patch_size = 4;
  config.layers_to_run = 1;
  return config;
}

TensorMap tiny_vision_tensors(const VisionConfig& config) {
  TensorMap tensors;
  std::uint64_t seed = 100;
  const auto add = [&](const std::string& name, std::vector<std::int64_t> sizes, double scale) {
    tensors[name] = random_tensor(sizes, ++seed, scale);
  };
  const std::int64_t d = config.hidden_size, inner = config.intermediate_size;
  add("embeddings.patch_embedding.weight", {d, 3, 4, 4}, 0.2);
  add("embeddings.class_embedding", {d}, 1.0);
  add("embeddings.position_embedding.weight", {10, d}, 0.5);
  for (const std::string norm :
       {"pre_layrnorm", "encoder.layers.0.layer_norm1", "encoder.layers.0.layer_norm2"}) {
    add(norm + ".weight", {d}, 1.0);
    add(norm + ".bias", {d}, 0.3);
  }
  for (const std::string name : {"q_proj", "k_proj", "v_proj", "out_proj"}) {
    add("encoder.layers.0.self_attn." + name + ".weight", {d, d}, 0.4);
    add("encoder.layers.0.self_attn." + name + ".bias", {d}, 0.3);
  }
  add("encoder.layers.0.mlp.fc1.weight", {inner, d}, 0.4);
  add("encoder.layers.0.mlp.fc1.bias", {inner}, 0.3);
  add("encoder.layers.0.mlp.fc2.weight", {d, inner}, 0.4);
  add("encoder.layers.0.mlp.fc2.bias", {d}, 0.3);
  return tensors;
}

using Matrix = std::vector<std::vector<double>>;

/// One layer of CLIP on one image, loop by loop in float64.
class EagerTower {
 public:
  EagerTower(const VisionConfig& config, const TensorMap& tensors)
      : config_(config), tensors_(tensors) {}

  Matrix run(const at::Tensor& pixels) const {  // [3, S, S] float32 -> [tokens, D]
    const auto x = pixels.accessor<float, 3>();
    const auto weight = tensors_.at("embeddings.patch_embedding.weight").accessor<float, 4>();
    const auto positions = tensors_.at("embeddings.position_embedding.weight").accessor<float, 2>();
    const auto class_embedding = tensors_.at("embeddings.class_embedding").accessor<float, 1>();
    Matrix tokens(10, std::vector<double>(12));
    for (int d = 0; d < 12; ++d)
      tokens[0][d] = static_cast<double>(class_embedding[d]) + positions[0][d];
    for (int patch = 0; patch < 9; ++patch) {
      for (int d = 0; d < 12; ++d) {
        double sum = positions[1 + patch][d];
        for (int c = 0; c < 3; ++c) {
          for (int i = 0; i < 16; ++i) {
            sum += static_cast<double>(weight[d][c][i / 4][i % 4]) *
                   x[c][patch / 3 * 4 + i / 4][patch % 3 * 4 + i % 4];
          }
        }
        tokens[1 + patch][d] = sum;
      }
    }
    Matrix hidden = norm(tokens, "pre_layrnorm");
    add(hidden, attention(norm(hidden, "encoder.layers.0.layer_norm1")));
    Matrix inner = linear(norm(hidden, "encoder.layers.0.layer_norm2"), "encoder.layers.0.mlp.fc1");
    for (auto& row : inner) {
      for (double& v : row) v = v / (1 + std::exp(-1.702 * v));
    }
    add(hidden, linear(inner, "encoder.layers.0.mlp.fc2"));
    hidden.erase(hidden.begin());
    return hidden;
  }

 private:
  static void add(Matrix& a, const Matrix& b) {
    for (std::size_t i = 0; i < a.size(); ++i) {
      for (std::size_t j = 0; j < a[i].size(); ++j) a[i][j] += b[i][j];
    }
  }

  Matrix linear(const Matrix& x, const std::string& name) const {
    const at::Tensor& weight = tensors_.at(name + ".weight");
    const auto w = weight.accessor<float, 2>();
    const auto b = tensors_.at(name + ".bias").accessor<float, 1>();
    Matrix y(x.size(), std::vector<double>(static_cast<std::size_t>(weight.size(0))));
    for (std::size_t row = 0; row < x.size(); ++row) {
      for (std::size_t o = 0; o < y[row].size(); ++o) {
        double sum = b[static_cast<std::int64_t>(o)];
        for (std::size_t i = 0; i < x[row].size(); ++i) {
          sum += x[row][i] * w[static_cast<std::int64_t>(o)][static_cast<std::int64_t>(i)];
        }
        y[row][o] = sum;
      }
    }
    return y;
  }

  Matrix norm(Matrix x, const std::string& name) const {
    const auto w = tensors_.at(name + ".weight").accessor<float, 1>(),
               b = tensors_.at(name + ".bias").accessor<float, 1>();
    for (auto& row : x) {
      double mean = 0, variance = 0;
      for (const double v : row) mean += v / 12;
      for (const double v : row) variance += (v - mean) * (v - mean) / 12;
      for (int i = 0; i < 12; ++i)
        row[i] = (row[i] - mean) / std::sqrt(variance + config_.layer_norm_eps) * w[i] + b[i];
    }
    return x;
  }

  Matrix attention(const Matrix& x) const {
    const std::string base = "encoder.layers.0.self_attn.";
    const Matrix q = linear(x, base + "q_proj"), k = linear(x, base + "k_proj"),
                 v = linear(x, base + "v_proj");
    Matrix mixed(x.size(), std::vector<double>(12, 0.0));
    for (int head = 0; head < 3; ++head) {
      for (std::size_t row = 0; row < x.size(); ++row) {
        std::vector<double> p(x.size());
        double total = 0;
        for (std::size_t key = 0; key < x.size(); ++key) {
          double score = 0;
          for (int i = 4 * head; i < 4 * head + 4; ++i) score += q[row][i] * k[key][i] / 2.0;
          total += p[key] = std::exp(score);
        }
        for (std::size_t key = 0; key < x.size(); ++key) {
          for (int i = 4 * head; i < 4 * head + 4; ++i) mixed[row][i] += p[key] / total * v[key][i];
        }
      }
    }
    return linear(mixed, base + "out_proj");
  }

  VisionConfig config_;
  const TensorMap& tensors_;
};

}  // namespace

TEST_CASE("the CLIP tower equals loops over its equations", "[vision]") {
  const VisionConfig config = tiny_vision();
  const TensorMap tensors = tiny_vision_tensors(config);
  const at::Tensor pixels = random_tensor({2, 3, 12, 12}, 55);
  for (const bool fuse : {false, true}) {
    ComputeTarget target;
    target.fuse_projections = fuse;
    const VisionTransformer tower(config, kClipNames, WeightReader(tensors, target));
    const at::Tensor features = tower(pixels);
    REQUIRE(features.sizes() == at::IntArrayRef({2, 9, 12}));
    for (int image = 0; image < 2; ++image) {
      const Matrix expected = EagerTower(config, tensors).run(pixels[image]);
      const auto found = features.accessor<float, 3>();
      for (int token = 0; token < 9; ++token) {
        for (int i = 0; i < 12; ++i)
          CHECK(found[image][token][i] == Approx(expected[token][i]).margin(2e-5));
      }
    }
  }
}

TEST_CASE("the CLIP tower keeps its class token where the model uses it", "[vision]") {
  VisionConfig config = tiny_vision();
  const TensorMap tensors = tiny_vision_tensors(config);
  const at::Tensor pixels = random_tensor({1, 3, 12, 12}, 56);
  const WeightReader weights(tensors, ComputeTarget());
  const at::Tensor without = VisionTransformer(config, kClipNames, weights)(pixels);
  config.drop_class_token = false;
  const at::Tensor with = VisionTransformer(config, kClipNames, weights)(pixels);
  CHECK(with.size(1) == 10);
  CHECK(at::equal(with.narrow(1, 1, 9), without));
  CHECK_THROWS_AS(VisionTransformer(config, kClipNames, weights)(pixels.narrow(2, 0, 8)),
                  InputError);
}

TEST_CASE("the gated half of an MLP is silu of one map times the other", "[decoder]") {
  const at::Tensor integers = random_tensor({2, 7, 12}, 91).mul(60).clamp(-127, 127).to(at::kChar);
  for (const bool is_int8 : {false, true}) {
    TensorMap tensors;
    for (int i = 0; i < 2; ++i) {
      const std::string name = i == 0 ? "gate_proj" : "up_proj";
      tensors[name + ".weight"] =
          is_int8 ? integers[i] : random_tensor({7, 12}, 92 + static_cast<unsigned>(i));
      tensors[name + ".bias"] = random_tensor({7}, 94 + static_cast<unsigned>(i));
      if (is_int8)
        tensors[name + ".weight_scale"] = random_tensor({7}, 96 + static_cast<unsigned>(i)).abs();
    }
    const auto map = [&](const std::string& name, const at::Tensor& input) {
      const at::Tensor weight = tensors.at(name + ".weight").to(at::kFloat);
      const at::Tensor scaled =
          is_int8 ? weight * tensors.at(name + ".weight_scale").unsqueeze(1) : weight;
      return at::matmul(input, scaled.t()) + tensors.at(name + ".bias");
    };
    for (const bool fuse : {false, true}) {
      ComputeTarget target;
      target.fuse_projections = fuse;
      const ProjectionGroup group(WeightReader(tensors, target), {{"gate_proj", 7}, {"up_proj", 7}},
                                  12, true);
      for (const std::int64_t rows : {1, 8, 9}) {
        CAPTURE(is_int8, fuse, rows);
        const at::Tensor input = random_tensor({1, rows, 12}, 98);
        const at::Tensor gate = map("gate_proj", input), up = map("up_proj", input);
        const at::Tensor out = group.swiglu(input);
        REQUIRE(out.sizes() == at::IntArrayRef({1, rows, 7}));
        CHECK(at::allclose(out, gate * at::sigmoid(gate) * up, 1e-5, 1e-5));
        const std::vector<at::Tensor> both = group(input);
        CHECK(at::allclose(both[0], gate, 1e-5, 1e-5));
        CHECK(at::allclose(both[1], up, 1e-5, 1e-5));
      }
    }
  }
}

TEST_CASE("the projector is linear, activation, linear", "[vision]") {
  VisionConfig config = tiny_vision();
  TensorMap tensors{{"linear_1.weight", random_tensor({5, 12}, 1)},
                    {"linear_1.bias", random_tensor({5}, 2)},
                    {"linear_2.weight", random_tensor({5, 5}, 3)},
                    {"linear_2.bias", random_tensor({5}, 4)}};
  const Projector projector(config, 5, WeightReader(tensors, ComputeTarget()));
  const at::Tensor x = random_tensor({1, 1, 12}, 6);
  const at::Tensor y = projector(x).flatten();
  const auto dot = [](const at::Tensor& row, const at::Tensor& v) {
    return row.to(at::kDouble).dot(v.to(at::kDouble)).item<double>();
  };
  at::Tensor inner = at::zeros({5}, at::kDouble);
  for (int i = 0; i < 5; ++i) {
    const double v = dot(tensors["linear_1.weight"][i], x.flatten()) +
                     tensors["linear_1.bias"][i].item<double>();
    inner[i] = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0)));
  }
  for (int i = 0; i < 5; ++i) {
    CHECK(y[i].item<double>() == Approx(dot(tensors["linear_2.weight"][i], inner) +
                                        tensors["linear_2.bias"][i].item<double>())
                                     .margin(1e-5));
  }
}

TEST_CASE("patches are merged row by row, or down the columns", "[vision]") {
  VisionConfig config;
  config.hidden_size = 1;
  config.image_size = 3;  // 3 x 3 patches, filled with zeros to 4 x 4
  config.patch_size = 1;
  config.merge_size = 2;
  TensorMap tensors{{"layer_norm.weight", at::ones({4})},
                    {"layer_norm.bias", at::zeros({4})},
                    {"linear_1.weight", at::eye(4)},
                    {"linear_1.bias", at::full({4}, 9.0)},  // GELU is the identity there
                    {"linear_2.weight", at::eye(4)},
                    {"linear_2.bias", at::full({4}, -9.0)}};
  const at::Tensor features = at::arange(1, 10, at::kFloat).view({1, 9, 1});
  const auto token = [](std::vector<float> values) {
    return at::layer_norm(at::tensor(values), {4}, {}, {}, 1e-5);
  };
  const std::vector<at::Tensor> expected{token({1, 2, 4, 5}), token({3, 0, 6, 0}),
                                         token({7, 8, 0, 0}), token({9, 0, 0, 0})};
  for (const bool transposed : {false, true}) {
    config.transposed_merge = transposed;
    const MergingProjector projector(config, 4, WeightReader(tensors, ComputeTarget()));
    const at::Tensor merged = projector(features);
    REQUIRE(merged.sizes() == at::IntArrayRef({1, 4, 4}));
    for (int i = 0; i < 4; ++i) {
      const at::Tensor& right = expected[transposed ? std::size_t{0} + i % 2 * 2 + i / 2 : i];
      CHECK((merged[0][i] - right).abs().max().item<float>() < 1e-5f);
    }
  }
}

namespace {

/// One id per character.
class LetterTokenizer : public Tokenizer {
 public:
  std::vector<std::int64_t> encode(std::string_view text, bool add_bos) const override {
    std::vector<std::int64_t> ids;
    if (add_bos) ids.push_back(1);
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
    return ids;
  }

  std::string decode(const std::vector<std::int64_t>&) const override { return ""; }

  std::optional<std::int64_t> token_id(std::string_view) const override { return std::nullopt; }

  std::size_t certain(const std::vector<std::int64_t>& ids) const override { return ids.size(); }

  std::int64_t size() const override { return 256; }
};

}  // namespace

TEST_CASE("a prompt is tokenised between its image places", "[prompt]") {
  const LetterTokenizer tokenizer;
  using Ids = std::vector<std::int64_t>;
  CHECK(encode_prompt(tokenizer, "ab<image>c", true, -200) == Ids{1, 'a', 'b', -200, 'c'});
  CHECK(encode_prompt(tokenizer, "<image><image>c", true, 500) == Ids{1, 500, 500, 'c'});
  CHECK(encode_prompt(tokenizer, "a<image>", false, 500) == Ids{'a', 500});
  CHECK(encode_prompt(tokenizer, "", true, 500) == Ids{1});
}

TEST_CASE("running out of memory becomes an error that says so", "[errors]") {
  using Catch::Matchers::Contains;
  CHECK(with_resource_errors("x", [] { return 3; }) == 3);
  CHECK_THROWS_AS(with_resource_errors("x", []() -> int { throw std::bad_alloc(); }),
                  ResourceError);
  CHECK_THROWS_WITH(with_resource_errors(
                        "model.pt", [] { return at::empty({std::int64_t{1} << 55}, at::kFloat); }),
                    Contains("model.pt") && Contains("out of memory"));
  CHECK_THROWS_AS(with_resource_errors("x", []() -> int { throw InputError("other"); }),
                  InputError);
  CHECK_THROWS_AS(with_resource_errors("x", [] { return at::empty({2}).view({3}); }), Error);
}

TEST_CASE("a linear map of few rows is that of many", "[linear]") {
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    Linear linear;
    linear.weight = random_tensor({33, 70}, 61).to(type);
    linear.bias = random_tensor({33}, 62).to(type);
    const at::Tensor input = random_tensor({1, 20, 70}, 63).to(type);
    const at::Tensor many = linear(input);
    const double bound = type == at::kFloat  ? 1e-5
                         : type == at::kHalf ? 0x1p-10
                                             : 0x1p-7;  // of the largest output
    for (const std::int64_t rows : {1, 2, 8, 9}) {
      INFO(type << ", " << rows << " rows");
      const at::Tensor few = linear(input.narrow(1, 3, rows));
      REQUIRE(few.sizes() == at::IntArrayRef({1, rows, 33}));
      CHECK(few.scalar_type() == type);
      const at::Tensor difference = (few - many.narrow(1, 3, rows)).to(at::kDouble).abs();
      CHECK(difference.max().item<double>() <= bound * many.abs().max().item<double>());
    }
  }
}

TEST_CASE("an int8 linear map of any number of rows is that of the weight multiplied out",
          "[linear]") {
  const std::int64_t in_features = 4096, out_features = 2500;  // three blocks
  const at::Tensor floats = random_tensor({out_features, in_features}, 64);
  Linear linear, plain;
  linear.scale = random_tensor({out_features}, 65).abs() * 0.01;
  linear.weight = (floats * 40).round().clamp(-127, 127).to(at::kChar);
  linear.bias = plain.bias = random_tensor({out_features}, 66);
  plain.weight = linear.weight.to(at::kFloat) * linear.scale->unsqueeze(1);
  const at::Tensor input = random_tensor({1, 12, in_features}, 67);
  const at::Tensor expected = plain(input);
  const double largest = expected.abs().max().item<double>();
  for (const std::int64_t rows : {1, 8, 9, 12}) {
    INFO(rows << " rows");
    const at::Tensor actual = linear(input.narrow(1, 0, rows));
    REQUIRE(actual.sizes() == at::IntArrayRef({1, rows, out_features}));
    CHECK((actual - expected.narrow(1, 0, rows)).abs().max().item<double>() <= 1e-5 * largest);
  }
}
