#include "families/internvl_names.h"

#include <c10/util/StringUtil.h>

#include <array>
#include <string_view>
#include <utility>

#include "families/tensor_specs.h"

namespace libvar {
namespace {

using Pair = std::pair<std::string_view, std::string_view>;

/// What stands before the rest of a published name; first match wins.
constexpr std::array<Pair, 6> kPublishedPrefixes{{
    {"language_model.output.", "language_model.lm_head."},
    {"language_model.model.tok_embeddings.", "language_model.model.embed_tokens."},
    {"vision_model.", "vision_tower."},
    {"mlp1.0.", "multi_modal_projector.layer_norm."},
    {"mlp1.1.", "multi_modal_projector.linear_1."},
    {"mlp1.3.", "multi_modal_projector.linear_2."},
}};

/// The same of transformers in memory.
constexpr std::array<Pair, 3> kMemoryPrefixes{{
    {"model.language_model.", "language_model.model."},
    {"lm_head.", "language_model.lm_head."},
    {"model.", ""},
}};

/// Parts of published names inside a layer, decoder's and tower's.
constexpr std::array<Pair, 6> kDecoderParts{{
    {".attention.wo.", ".self_attn.o_proj."},
    {".attention_norm.", ".input_layernorm."},
    {".ffn_norm.", ".post_attention_layernorm."},
    {".feed_forward.w1.", ".mlp.gate_proj."},
    {".feed_forward.w3.", ".mlp.up_proj."},
    {".feed_forward.w2.", ".mlp.down_proj."},
}};

constexpr std::array<Pair, 9> kTowerParts{{
    {".class_embedding", ".cls_token"},
    {".position_embedding", ".position_embeddings"},
    {".patch_embedding.", ".patch_embeddings.projection."},
    {".encoder.layers.", ".encoder.layer."},
    {".attn.proj.", ".attention.projection_layer."},
    {".norm1.", ".layernorm_before."},
    {".norm2.", ".layernorm_after."},
    {".ls1", ".lambda_1"},
    {".ls2", ".lambda_2"},
}};

/// Parts of canonical names that lie in a fused projection.
constexpr std::array<Pair, 3> kDecoderFused{{
    {".self_attn.q_proj.", ".attention.wqkv."},
    {".self_attn.k_proj.", ".attention.wqkv."},
    {".self_attn.v_proj.", ".attention.wqkv."},
}};

constexpr std::array<Pair, 3> kTowerFused{{
    {".attention.q_proj.", ".attn.qkv."},
    {".attention.k_proj.", ".attn.qkv."},
    {".attention.v_proj.", ".attn.qkv."},
}};

template <std::size_t count>
constexpr std::array<Pair, count> swapped(std::array<Pair, count> pairs) {
  for (auto& [from, to] : pairs) std::swap(from, to);
  return pairs;
}

template <std::size_t count>
std::string with_prefix(const std::string& name, const std::array<Pair, count>& prefixes) {
  for (const auto& [from, to] : prefixes) {
    if (name.starts_with(from)) return std::string(to).append(name, from.size());
  }
  return name;
}

template <std::size_t count>
std::string with_parts(std::string name, const std::array<Pair, count>& parts) {
  for (const auto& [from, to] : parts) {
    const std::size_t at = name.find(from);
    if (at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

std::string replaced(std::string name, std::string_view from, std::string_view to) {
  return name.replace(name.find(from), from.size(), to);
}

/// Rows of wqkv: for each key head its `group` queries, then its key, then its value.
std::vector<CanonicalTensor> split_by_key_heads(const std::string& name,
                                                const DecoderConfig& decoder) {
  const std::int64_t kv_heads = decoder.num_kv_heads, head_dim = decoder.head_dim;
  const std::int64_t group = decoder.num_heads / kv_heads;
  const auto slots = [=](std::int64_t first, std::int64_t count) {
    return [=](const at::Tensor& fused) {
      return fused.view({kv_heads, group + 2, head_dim, -1})
          .narrow(1, first, count)
          .reshape({kv_heads * count * head_dim, fused.size(-1)});
    };
  };
  const std::string_view fused = ".attention.wqkv.";
  const std::int64_t rows = kv_heads * (group + 2) * head_dim;
  return {{replaced(name, fused, ".self_attn.q_proj."), slots(0, group), rows},
          {replaced(name, fused, ".self_attn.k_proj."), slots(group, 1), rows},
          {replaced(name, fused, ".self_attn.v_proj."), slots(group + 1, 1), rows}};
}

std::vector<CanonicalTensor> split_in_thirds(const std::string& name, std::int64_t rows) {
  const auto third = [](std::int64_t i) {
    return [i](const at::Tensor& fused) { return fused.unflatten(0, {3, -1}).select(0, i); };
  };
  const std::string_view fused = ".attn.qkv.";
  return {{replaced(name, fused, ".attention.q_proj."), third(0), rows},
          {replaced(name, fused, ".attention.k_proj."), third(1), rows},
          {replaced(name, fused, ".attention.v_proj."), third(2), rows}};
}

void add_tower(TensorSpecs& specs, const VisionConfig& vision) {
  const std::string tower = "vision_tower.";
  const std::int64_t hidden = vision.hidden_size, side = vision.image_size / vision.patch_size;
  specs.add(tower + "embeddings.cls_token", {1, 1, hidden});
  specs.add(tower + "embeddings.patch_embeddings.projection.weight",
            {hidden, 3, vision.patch_size, vision.patch_size});
  specs.add(tower + "embeddings.patch_embeddings.projection.bias", {hidden});
  specs.add(tower + "embeddings.position_embeddings", {1, 1 + side * side, hidden});
  for (std::int64_t i = 0; i < vision.layers_to_run; ++i) {
    const std::string layer = c10::str(tower, "encoder.layer.", i, ".");
    specs.layer_norm(layer + "layernorm_before", hidden);
    specs.layer_norm(layer + "layernorm_after", hidden);
    specs.add(layer + "lambda_1", {hidden});
    specs.add(layer + "lambda_2", {hidden});
    for (const char* part : {"q_proj", "k_proj", "v_proj"})
      specs.linear(layer + "attention." + part, hidden, hidden, vision.qkv_bias);
    specs.linear(layer + "attention.projection_layer", hidden, hidden, true);
    specs.linear(layer + "mlp.fc1", vision.intermediate_size, hidden, true);
    specs.linear(layer + "mlp.fc2", hidden, vision.intermediate_size, true);
  }
}

}  // namespace

std::vector<CanonicalTensor> internvl_canonical_tensors(const std::string& name,
                                                        const ModelConfig& config) {
  if (name.ends_with(".rotary_emb.inv_freq")) return {};
  std::string canonical = with_prefix(name, kPublishedPrefixes);
  if (canonical == name) canonical = with_prefix(name, kMemoryPrefixes);
  if (canonical.starts_with("language_model.")) {
    if (canonical.find(".attention.wqkv.") != std::string::npos)
      return split_by_key_heads(canonical, config.decoder);
    return {{with_parts(canonical, kDecoderParts)}};
  }
  if (!name.starts_with("vision_model.")) return {{canonical}};
  const std::string tower = with_parts(canonical, kTowerParts);
  if (tower.find(".attn.qkv.") != std::string::npos)
    return split_in_thirds(tower, 3 * config.vision.hidden_size);
  return {{tower}};
}

std::string internvl_published_name(const std::string& canonical) {
  const std::string name =
      canonical.starts_with("language_model.")
          ? with_parts(with_parts(canonical, kDecoderFused), swapped(kDecoderParts))
          : with_parts(with_parts(canonical, kTowerFused), swapped(kTowerParts));
  return with_prefix(name, swapped(kPublishedPrefixes));
}

std::vector<TensorSpec> internvl_expected_tensors(const ModelConfig& config) {
  TensorSpecs specs;
  specs.decoder(config.decoder_scope, config.decoder);
  add_tower(specs, config.vision);
  specs.merging_projector(config.vision, config.decoder.hidden_size);
  return specs.take();
}

}  // namespace libvar
