#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "huge_pages.h"
#include "libvar/request.h"
#include "upload.h"

namespace libvar {

/// A model's tensors by canonical name, as the archive gives them.
using TensorMap = std::map<std::string, at::Tensor>;

/// Where and how a model computes.
struct ComputeTarget {
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  bool fuse_projections =
      false;  ///< one buffer for projections of one input; costs a copy of the weights
  /// On the CPU: weights are copied into huge pages, in place of being used where they are.
  bool copies_weights = false;
};

/// Hands out a model's tensors on the device and in the dtype of the computation.
///
/// Unless the target copies weights, a tensor that is already there is used in place, so that a
/// mapped file stays the only copy; every other one is copied once, straight from the mapping.
class WeightReader {
 public:
  /// What the owner of the tensors' memory is told.
  struct Hooks {
    std::function<void(const at::Tensor&)> before_read;  ///< the tensor is read next
    std::function<void(const at::Tensor&)> on_copied;    ///< a copy of it was made
    ProgressCallback on_progress;
  };

  /// @param tensors  must outlive the reader, not what it hands out
  WeightReader(const TensorMap& tensors, ComputeTarget target, Hooks hooks = {});

  /// The same reader for names that begin with `prefix`.
  WeightReader scope(const std::string& prefix) const;

  /// @throws ArchiveError  the tensor is missing or has another shape
  at::Tensor read(const std::string& name, at::IntArrayRef shape) const;

  /// A tensor that keeps its dtype: int8 weights and their scales.
  /// @throws ArchiveError  as read
  at::Tensor read_as_stored(const std::string& name, at::IntArrayRef shape) const;

  /// Whether the weight is int8 with scales.
  /// @throws ArchiveError  as read
  bool is_quantized(const std::string& name, at::IntArrayRef shape) const;

  /// Tensors with equal trailing sizes and dtypes below one another in one new buffer, in the dtype
  /// of the computation unless they keep theirs.
  /// @throws ArchiveError  as read
  at::Tensor read_stacked(const std::vector<std::string>& names,
                          const std::vector<std::vector<std::int64_t>>& shapes,
                          bool as_stored = false) const;

  const ComputeTarget& target() const { return target_; }

 private:
  /// What a reader and its scopes share.
  struct Progress {
    Hooks hooks;
    std::int64_t done_bytes = 0, total_bytes = 0;
    HugePageArena memory;
    std::optional<Upload> upload;  ///< where the device is not the CPU
  };

  const at::Tensor& find(const std::string& name, at::IntArrayRef shape) const;
  /// What find() gives, about to be read.
  const at::Tensor& fetch(const std::string& name, at::IntArrayRef shape) const;
  /// The tensor where it is computed with.
  at::Tensor place(const at::Tensor& source, at::ScalarType dtype) const;
  bool is_uploaded(const at::Tensor& source) const;
  void report(const at::Tensor& source, bool is_copied) const;

  const TensorMap* tensors_;
  ComputeTarget target_;
  std::shared_ptr<Progress> progress_;
  std::string prefix_;
};

/// y = x W^T + b, or y = x (W * scale)^T + b.
///
/// An int8 weight is never multiplied out as a whole: a few rows are multiplied by it as it is,
/// more by blocks of its rows, one after the other in one buffer.
struct Linear {
  at::Tensor weight;                ///< [out, in]
  std::optional<at::Tensor> bias;   ///< [out]
  std::optional<at::Tensor> scale;  ///< [out] float32, where weight is int8

  static Linear read(const WeightReader& weights, const std::string& name, std::int64_t in_features,
                     std::int64_t out_features, bool has_bias);
  at::Tensor operator()(const at::Tensor& input) const;

 private:
  at::Tensor by_blocks(const at::Tensor& input, const at::Tensor& scales) const;
};

/// Several linear maps of one input: query, key and value; gate and up.
///
/// Where the target fuses, their weights lie in one buffer and one matrix product computes them
/// all.
class ProjectionGroup {
 public:
  struct Part {
    std::string name;
    std::int64_t out_features;
  };

  ProjectionGroup(const WeightReader& weights, const std::vector<Part>& parts,
                  std::int64_t in_features, bool has_bias);

  /// One result [..., out_features] for each part, in order; contiguous in its last dimension.
  std::vector<at::Tensor> operator()(const at::Tensor& input) const;

  /// silu of the first of two parts times the second: gate and up.
  at::Tensor swiglu(const at::Tensor& input) const;

 private:
  std::vector<Linear> parts_;    // parts of fused_ where that is there
  std::optional<Linear> fused_;  // all in one
};

}  // namespace libvar
