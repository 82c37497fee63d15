#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "libvar/analysis.h"

namespace libvar {

/// Collects where the first token of prompts is massive; discover_sink_dimensions() defines it.
class MassiveDimensions {
 public:
  explicit MassiveDimensions(std::int64_t num_layers);

  /// @param hidden  [1, N, D] of a whole prompt entering the layer, not kept
  void add(std::int64_t layer, const at::Tensor& hidden);

  /// The layers that decide, [begin, end).
  std::pair<std::int64_t, std::int64_t> middle_layers() const;

  /// Those that are sink dimensions by what was added, the largest first.
  std::vector<FoundSinkDimension> found() const;

 private:
  struct LayerSums {
    std::int64_t prompts = 0;
    at::Tensor massive;       // [D] int64: prompts in which the dimension is massive
    at::Tensor times_median;  // [D] float64: summed over the prompts; what is not finite adds 0
  };

  std::vector<LayerSums> layers_;
};

}  // namespace libvar
