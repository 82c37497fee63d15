#include "weights.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "libvar/error.h"
#include "libvar/ops.h"
#include "quantized_names.h"

namespace libvar {

WeightReader::WeightReader(const TensorMap& tensors, ComputeTarget target, Hooks hooks)
    : tensors_(&tensors), target_(target), progress_(std::make_shared<Progress>()) {
  progress_->hooks = std::move(hooks);
  if (!target.device.is_cpu()) progress_->upload.emplace(target.device);
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

const at::Tensor& WeightReader::fetch(const std::string& name, at::IntArrayRef shape) const {
  const at::Tensor& source = find(name, shape);
  if (progress_->hooks.before_read) progress_->hooks.before_read(source);
  return source;
}

bool WeightReader::is_uploaded(const at::Tensor& source) const {
  return progress_->upload.has_value() && source.is_cpu();
}

void WeightReader::report(const at::Tensor& source, bool is_copied) const {
  const Hooks& hooks = progress_->hooks;
  if (is_copied && hooks.on_copied) hooks.on_copied(source);
  progress_->done_bytes += static_cast<std::int64_t>(source.nbytes());
  if (hooks.on_progress) hooks.on_progress(progress_->done_bytes, progress_->total_bytes);
}

at::Tensor WeightReader::place(const at::Tensor& source, at::ScalarType dtype) const {
  at::Tensor result;
  if (is_uploaded(source)) {
    result = progress_->upload->tensor(source).to(dtype);
  } else if (target_.copies_weights) {
    result = progress_->memory.empty(source.sizes(), dtype);
    result.copy_(source);
  } else {
    result = source.to(dtype);
  }
  report(source, !result.is_same(source));
  return result;
}

at::Tensor WeightReader::read(const std::string& name, at::IntArrayRef shape) const {
  return place(fetch(name, shape), target_.dtype);
}

at::Tensor WeightReader::read_as_stored(const std::string& name, at::IntArrayRef shape) const {
  const at::Tensor& source = fetch(name, shape);
  return place(source, source.scalar_type());
}

bool WeightReader::is_quantized(const std::string& name, at::IntArrayRef shape) const {
  return find(name, shape).scalar_type() == at::kChar;
}

at::Tensor WeightReader::read_stacked(const std::vector<std::string>& names,
                                      const std::vector<std::vector<std::int64_t>>& shapes,
                                      bool as_stored) const {
  const at::ScalarType dtype =
      as_stored ? find(names.front(), shapes.front()).scalar_type() : target_.dtype;
  std::vector<std::int64_t> sizes = shapes.front();
  sizes[0] = 0;
  for (const auto& shape : shapes) sizes[0] += shape[0];
  at::Tensor result = at::empty(sizes, at::TensorOptions().device(target_.device).dtype(dtype));
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const at::Tensor& source = fetch(names[i], shapes[i]);
    const at::Tensor part = result.narrow(0, begin, shapes[i][0]);
    if (is_uploaded(source) && source.scalar_type() == dtype) {
      progress_->upload->copy(part, source);
    } else {
      part.copy_(is_uploaded(source) ? progress_->upload->tensor(source) : source);
    }
    begin += shapes[i][0];
    report(source, /*is_copied=*/true);
  }
  return result;
}

Linear Linear::read(const WeightReader& weights, const std::string& name, std::int64_t in_features,
                    std::int64_t out_features, bool has_bias) {
  Linear result;
  const std::string weight = name + ".weight";
  const std::vector<std::int64_t> shape = {out_features, in_features};
  if (weights.is_quantized(weight, shape)) {
    result.weight = weights.read_as_stored(weight, shape);
    result.scale = weights.read_as_stored(scale_name(weight), {out_features});
  } else {
    result.weight = weights.read(weight, shape);
  }
  if (has_bias) result.bias = weights.read(name + ".bias", {out_features});
  return result;
}

namespace {

// Whether libvar's own op is the faster one. Measured on the CPU up to the rows that it takes; of
// one float16 row PyTorch has a kernel that is as fast (decision 0014). On CUDA the op itself
// chooses (decision 0019).
bool is_skinny(const at::Tensor& input, bool is_quantized) {
  const std::int64_t rows = input.numel() / input.size(-1);
  if (rows > kMaxSkinnyRows) return false;
  return !input.is_cpu() || rows > 1 || is_quantized || input.scalar_type() != at::kHalf;
}

// Elements of an int8 weight that are multiplied out at a time: 8 MiB in bfloat16.
constexpr std::int64_t kBlockElements = std::int64_t{1} << 22;

}  // namespace

at::Tensor Linear::operator()(const at::Tensor& input) const {
  if (is_skinny(input, scale.has_value())) return skinny_linear(input, weight, bias, scale);
  if (scale.has_value()) return by_blocks(input, *scale);
  return at::linear(input, weight, bias);
}

at::Tensor Linear::by_blocks(const at::Tensor& input, const at::Tensor& scales) const {
  const std::int64_t out_features = weight.size(0);
  std::vector<std::int64_t> sizes = input.sizes().vec();
  sizes.back() = out_features;
  at::Tensor output = at::empty(sizes, input.options());
  const std::int64_t rows = std::max<std::int64_t>(1, kBlockElements / weight.size(1));
  for (std::int64_t begin = 0; begin < out_features; begin += rows) {
    const std::int64_t count = std::min(rows, out_features - begin);
    const at::Tensor block = weight.narrow(0, begin, count)
                                 .to(at::kFloat)
                                 .mul_(scales.narrow(0, begin, count).unsqueeze(1))
                                 .to(input.scalar_type());
    output.narrow(-1, begin, count)
        .copy_(at::linear(
            input, block,
            bias.has_value() ? std::optional(bias->narrow(0, begin, count)) : std::nullopt));
  }
  return output;
}

namespace {

// Rows of a linear map as one of their own.
Linear part_of(const Linear& linear, std::int64_t begin, std::int64_t count) {
  const auto part = [&](const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() ? std::optional(tensor->narrow(0, begin, count)) : std::nullopt;
  };
  Linear result;
  result.weight = linear.weight.narrow(0, begin, count);
  result.bias = part(linear.bias);
  result.scale = part(linear.scale);
  return result;
}

}  // namespace

ProjectionGroup::ProjectionGroup(const WeightReader& weights, const std::vector<Part>& parts,
                                 std::int64_t in_features, bool has_bias) {
  if (!weights.target().fuse_projections) {
    for (const Part& part : parts)
      parts_.push_back(Linear::read(weights, part.name, in_features, part.out_features, has_bias));
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
  const bool is_quantized = weights.is_quantized(weight_names.front(), weight_shapes.front());
  fused.weight = weights.read_stacked(weight_names, weight_shapes, is_quantized);
  if (is_quantized) {
    std::vector<std::string> scale_names;
    for (const std::string& name : weight_names) scale_names.push_back(scale_name(name));
    fused.scale = weights.read_stacked(scale_names, bias_shapes, true);
  }
  if (has_bias) fused.bias = weights.read_stacked(bias_names, bias_shapes);
  std::int64_t begin = 0;
  for (const Part& part : parts) {
    parts_.push_back(part_of(fused, begin, part.out_features));
    begin += part.out_features;
  }
  fused_ = std::move(fused);
}

std::vector<at::Tensor> ProjectionGroup::operator()(const at::Tensor& input) const {
  std::vector<at::Tensor> result;
  result.reserve(parts_.size());
  if (!fused_.has_value()) {
    for (const Linear& part : parts_) result.push_back(part(input));
    return result;
  }
  const at::Tensor all = (*fused_)(input);
  std::int64_t begin = 0;
  for (const Linear& part : parts_) {
    result.push_back(all.narrow(-1, begin, part.weight.size(0)));
    begin += part.weight.size(0);
  }
  return result;
}

at::Tensor ProjectionGroup::swiglu(const at::Tensor& input) const {
  const Linear& gate = parts_.at(0);
  const Linear& up = parts_.at(1);
  if (is_skinny(input, gate.scale.has_value()))
    return skinny_swiglu(input, gate.weight, up.weight, gate.bias, up.bias, gate.scale, up.scale);
  std::vector<at::Tensor> both = (*this)(input);
  // On a CPU in place: pages of a fresh result cost more there than the second pass over gate.
  if (input.is_cpu()) return at::silu_(both[0]).mul_(both[1]);
  return silu_mul(both[0], both[1]);
}

}  // namespace libvar
