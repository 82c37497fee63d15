#pragma once

// Random attention problems of real shapes, and the check of an output against the oracle of
// tests/reference.

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "libvar/ops.h"

namespace libvar::bench {

struct AttentionShape {
  std::int64_t num_heads = 32, num_kv_heads = 32, num_rows = 1, num_keys = 640, num_sinks = 8;
  at::ScalarType dtype = at::kBFloat16;
  bool cold = true;
  std::int64_t head_dim = 128;
};

/// Everything that libvar and its peers compute one call from. What only peers need, masks and
/// index lists, is made ahead and costs them nothing in the timed part.
struct AttentionSet {
  AttentionInputs in;
  at::Tensor causal_bias;  ///< [Q, K] in the dtype of query, 0 or -inf; undefined for one row
  at::Tensor visual_sinks, sinks;  ///< int64 positions
  std::int64_t visual_begin = 0, visual_end = 0;
  double selected_share = 0.0;  ///< filled by AttentionCheck
};

/// Scores are normal; sink keys get more, from 0 to 4.5 by head, so that some heads are
/// image-centric and some are not. One image span; the last rows are text; sinks are the first
/// token and keys spread over the span.
AttentionSet random_attention_set(const AttentionShape& shape, const at::Device& device,
                                  std::uint64_t seed);

/// K and V of the keys, query, output, phi and mask, each once.
double attention_bytes(const AttentionShape& shape);
double attention_flops(const AttentionShape& shape);

/// Double-precision results of a sample of (head, row) pairs: all of them in decode.
class AttentionCheck {
 public:
  AttentionCheck(const AttentionSet& set, const RedistributionRule& rule);

  /// Largest relative error of a row, as a share of what is allowed; infinite where any
  /// element of the output is not finite. Rows whose selection hangs on less than `margin` are left
  /// out.
  [[nodiscard]] double error_share(const at::Tensor& out, bool redistributed, double margin,
                                   double allowed) const;
  [[nodiscard]] double selected_share() const;
  /// Largest relative change that redistribution makes to a row: a check that allows as much could
  /// not see it missing.
  [[nodiscard]] double effect() const;

 private:
  struct Row {
    std::int64_t head, row;
    std::vector<double> plain, moved;
    bool selected;
    double margin;
  };

  std::vector<Row> rows_;
};

/// Relative error that a row of libvar's may have.
double allowed_row_error(at::ScalarType dtype);

}  // namespace libvar::bench
