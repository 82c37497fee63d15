#pragma once

#include <optional>
#include <string>
#include <vector>

#include "families/family.h"

namespace libvar {

/// Layout A name of a tensor of layouts A, B, C or the original one; none: a buffer or a part that
/// answers need not.
std::optional<std::string> llava_canonical_name(const std::string& name);

/// The tensors of a LLaVA with a CLIP tower.
std::vector<TensorSpec> llava_expected_tensors(const ModelConfig& config);

}  // namespace libvar
