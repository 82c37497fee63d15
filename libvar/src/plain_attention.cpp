#include "plain_attention.h"

#include <ATen/ops/scaled_dot_product_attention.h>

#include <tuple>

#ifdef LIBVAR_WITH_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>
#endif

namespace libvar {
namespace {

#ifdef LIBVAR_WITH_CUDA
/// PyTorch puts cuDNN first on sm_90 and sm_100. That builds a plan for each new number of rows, in
/// more time than it saves over flash attention below some thousand rows, and keeps it (decision
/// 0020).
bool prefers_flash(const at::Tensor& query) {
  constexpr std::int64_t kMostRows = 8192, kMostHeadDim = 256, kHeadDimUnit = 8;
  constexpr int kFirstMajor = 8;
  const at::ScalarType type = query.scalar_type();
  const std::int64_t head_dim = query.size(3);
  return query.is_cuda() && (type == at::kHalf || type == at::kBFloat16) &&
         query.size(2) <= kMostRows && head_dim <= kMostHeadDim && head_dim % kHeadDimUnit == 0 &&
         at::cuda::getDeviceProperties(query.device().index())->major >= kFirstMajor;
}
#endif

}  // namespace

at::Tensor plain_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           bool is_causal, std::optional<double> scale) {
#ifdef LIBVAR_WITH_CUDA
  if (prefers_flash(query)) {
    return std::get<0>(at::_scaled_dot_product_flash_attention(
        query, key, value, /*dropout_p=*/0.0, is_causal, /*return_debug_mask=*/false, scale));
  }
#endif
  return at::scaled_dot_product_attention(query, key, value, {}, /*dropout_p=*/0.0, is_causal,
                                          scale, /*enable_gqa=*/query.size(1) != key.size(1));
}

}  // namespace libvar
