#pragma once

#include <string>
#include <vector>

#include "families/family.h"

namespace libvar {

/// Canonical tensors (transformers' own layout A) of one that InternVLChatModel publishes, or of
/// transformers' layouts; empty: a buffer. Fused projections are taken apart: wqkv by key heads,
/// each with its queries, its key and its value; qkv of the tower in thirds.
std::vector<CanonicalTensor> internvl_canonical_tensors(const std::string& name,
                                                        const ModelConfig& config);

/// The name under which InternVLChatModel publishes a canonical tensor, or the one that holds it.
std::string internvl_published_name(const std::string& canonical);

/// The tensors of an InternVL with an InternViT tower.
std::vector<TensorSpec> internvl_expected_tensors(const ModelConfig& config);

}  // namespace libvar
