#pragma once

#include "libvar/ops.h"

namespace libvar::bench {

/// `attention` on CUDA without classes, masses and weights: what the class logic costs is measured
/// against it. Throws where no such kernel exists (float32 with several rows, odd head sizes) and
/// where libvar is built without CUDA.
at::Tensor cuda_attention_without_classes(const AttentionInputs& in);

}  // namespace libvar::bench
