#include "weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/util/StringUtil.h>

#include <numeric>
#include <utility>

#include "libvar/error.h"
#include "libvar/ops.h"

namespace libvar {

WeightReader::WeightReader(const TensorMap& tensors, ComputeTarget target,
                           ProgressCallback on_progress)
    : tensors_(&tensors), target_(target), progress_(std::make_shared<Progress>()) {
  progress_->callback = std::move(on_progress);
  for (const auto& [name, tensor] : tensors)
    progress_->total_bytes += static_cast<std::int64_t>(tensor.nbytes());
}

WeightReader WeightReader::scope(const std::string& prefix) const {
  WeightReader result = *this;
  result.prefix_ += prefix;
  return result;
}

const at::Tensor& WeightReader::find(const std::string& name, at::IntArrayRef shape) const {
  const auto found = tensors_->find(prefix_ + name);
  if (found == tensors_->end())
    throw ArchiveError(c10::str("archive: tensor ", prefix_, name, " is missing"));
  if (found->second.sizes() != shape) {
    throw ArchiveError(c10::str("archive: tensor ", prefix_, name, ": expected shape ", shape,
                                ", got ", found->second.sizes()));
  }
  return found->second;
}

void WeightReader::report(const at::Tensor& tensor) const {
  progress_->done_bytes += static_cast<std::int64_t>(tensor.nbytes());
  if (progress_->callback) progress_->callback(progress_->done_bytes, progress_->total_bytes);
}

at::Tensor WeightReader::read(const std::string& name, at::IntArrayRef shape) const {
  const at::Tensor& source = find(name, shape);
  at::Tensor result = source.to(target_.device, target_.dtype);
  report(source);
  return result;
}

at::Tensor WeightReader::read_stacked(const std::vector<std::string>& names,
                                      const std::vector<std::vector<std::int64_t>>& shapes) const {
  std::vector<std::int64_t> sizes = shapes.front();
  sizes[0] = 0;
  for (const auto& shape : shapes) sizes[0] += shape[0];
  at::Tensor result =
      at::empty(sizes, at::TensorOptions().device(target_.device).dtype(target_.dtype));
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const at::Tensor& source = find(names[i], shapes[i]);
    result.narrow(0, begin, shapes[i][0]).copy_(source);
    begin += shapes[i][0];
    report(source);
  }
  return result;
}

Linear Linear::read(const WeightReader& weights, const std::string& name, std::int64_t in_features,
                    std::int64_t out_features, bool has_bias) {
  Linear result;
  result.weight = weights.read(name + ".weight", {out_features, in_features});
  if (has_bias) result.bias = weights.read(name + ".bias", {out_features});
  return result;
}

namespace {

// Whether libvar's own op is the faster one. Measured on the CPU up to the rows that it takes; of
// one float16 row PyTorch has a kernel that is as fast (decision 0014).
bool is_skinny(const at::Tensor& input) {
  const std::int64_t rows = input.numel() / input.size(-1);
  return input.is_cpu() && rows <= kMaxSkinnyRows && (rows > 1 || input.scalar_type() != at::kHalf);
}

}  // namespace

at::Tensor Linear::operator()(const at::Tensor& input) const {
  if (is_skinny(input)) return skinny_linear(input, weight, bias);
  return at::linear(input, weight, bias);
}

ProjectionGroup::ProjectionGroup(const WeightReader& weights, const std::vector<Part>& parts,
                                 std::int64_t in_features, bool has_bias) {
  for (const Part& part : parts) out_features_.push_back(part.out_features);
  if (!weights.target().fuse_projections) {
    for (const Part& part : parts) {
      linears_.push_back(
          Linear::read(weights, part.name, in_features, part.out_features, has_bias));
    }
    return;
  }
  std::vector<std::string> weight_names, bias_names;
  std::vector<std::vector<std::int64_t>> weight_shapes, bias_shapes;
  for (const Part& part : parts) {
    weight_names.push_back(part.name + ".weight");
    weight_shapes.push_back({part.out_features, in_features});
    bias_names.push_back(part.name + ".bias");
    bias_shapes.push_back({part.out_features});
  }
  Linear fused;
  fused.weight = weights.read_stacked(weight_names, weight_shapes);
  if (has_bias) fused.bias = weights.read_stacked(bias_names, bias_shapes);
  linears_.push_back(std::move(fused));
}

std::vector<at::Tensor> ProjectionGroup::operator()(const at::Tensor& input) const {
  std::vector<at::Tensor> result;
  result.reserve(out_features_.size());
  if (linears_.size() == out_features_.size()) {
    for (const Linear& linear : linears_) result.push_back(linear(input));
    return result;
  }
  const at::Tensor all = linears_.front()(input);
  std::int64_t begin = 0;
  for (const std::int64_t size : out_features_) {
    result.push_back(all.narrow(-1, begin, size));
    begin += size;
  }
  return result;
}

}  // namespace libvar
