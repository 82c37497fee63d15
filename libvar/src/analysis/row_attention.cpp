#include "analysis/row_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>

#include <limits>

#include "libvar/ops.h"

namespace libvar {

at::Tensor row_probabilities(const AttentionView& view, const std::vector<std::int64_t>& rows) {
  const std::int64_t length = view.past + view.query.size(2), heads = view.query.size(1);
  const at::Tensor positions = at::tensor(rows, at::kLong).to(view.query.device());
  const at::Tensor query = view.query.index_select(2, positions - view.past).to(at::kFloat);
  const at::Tensor key = view.cache.keys(view.layer, length).to(at::kFloat);
  const std::int64_t kv_heads = key.size(1);
  // [1, Hkv, heads of a group * R, Dh] against [1, Hkv, K, Dh]: keys are not repeated.
  const at::Tensor grouped = query.unflatten(1, {kv_heads, heads / kv_heads}).flatten(2, 3);
  at::Tensor scores = at::matmul(grouped, key.transpose(2, 3)) * view.scale;
  scores = scores.unflatten(2, {heads / kv_heads, -1}).flatten(1, 2);  // [1, H, R, K]
  const at::Tensor hidden =
      at::arange(length, positions.options()).unsqueeze(0) > positions.unsqueeze(1);
  return at::softmax(scores.masked_fill(hidden, -std::numeric_limits<float>::infinity()), -1);
}

at::Tensor redistribute_rows(const AttentionView& view, const std::vector<std::int64_t>& rows,
                             const at::Tensor& probs) {
  if (view.rule.head_rule == HeadRule::kNone) return probs;
  const std::int64_t length = probs.size(3);
  const at::Tensor phi = view.cache.sink_scores(view.layer, length),
                   visual = view.cache.visual_mask(length);
  const at::Tensor sinks = (visual & (phi >= view.rule.tau)).flatten();
  const at::Tensor seen =
      sinks.cumsum(0, at::kLong) > 0;  // a visual sink at or before the position
  const at::Tensor positions = at::tensor(rows, at::kLong).to(probs.device());
  const at::Tensor row_mask = seen.index_select(0, positions).unsqueeze(0);  // [1, R]
  if (view.rule.ratio_epsilon == 0) return redistribute(probs, phi, visual, row_mask, view.rule);
  // The op counts all keys that it is given: each row gets those that it sees.
  at::Tensor out = probs.clone();
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    const std::int64_t keys = rows[i] + 1;
    at::Tensor row = out.narrow(2, at, 1).narrow(3, 0, keys);
    row.copy_(redistribute(row.contiguous(), phi.narrow(1, 0, keys).contiguous(),
                           visual.narrow(1, 0, keys).contiguous(), row_mask.narrow(1, at, 1),
                           view.rule));
  }
  return out;
}

at::Tensor value_norms(const AttentionView& view, const at::Tensor& keys) {
  const std::int64_t length = view.past + view.query.size(2), heads = view.query.size(1);
  const at::Tensor value =
      view.cache.values(view.layer, length)[0].index_select(1, keys).to(at::kFloat);
  const at::Tensor repeated = value.repeat_interleave(heads / value.size(0), 0);  // [H, keys, Dh]
  // |W v|^2 = v' (W' W) v: head by head, never [keys, D].
  const at::Tensor weight =
      view.out_weight.to(at::kFloat).unflatten(1, {heads, -1}).transpose(0, 1);
  const at::Tensor gram = at::bmm(weight.transpose(1, 2), weight);  // [H, Dh, Dh]
  return (at::bmm(repeated, gram) * repeated).sum(-1).clamp_min(0).sqrt();
}

}  // namespace libvar
