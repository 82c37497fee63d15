#include "unit/ops/vector_probe.h"

#include "cpu/vector.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

// Whole vectors first, then the rest as a partial one.
template <typename To, typename From>
LIBVAR_INLINE void convert(To* out, const From* in, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(out + i, load(in + i));
  if (i < count) store_partial(out + i, load_partial(in + i, count - i), count - i);
}

}  // namespace

int probe_lanes() {
  return kLanes;
}

void probe_exp(float* out, const float* in, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes)
    store(out + i, exp_of_non_positive(load(in + i)));
}

void probe_load_half(float* out, const Half* in, std::int64_t count) {
  convert(out, in, count);
}

void probe_load_bfloat16(float* out, const Bfloat16* in, std::int64_t count) {
  convert(out, in, count);
}

void probe_store_half(Half* out, const float* in, std::int64_t count) {
  convert(out, in, count);
}

void probe_store_bfloat16(Bfloat16* out, const float* in, std::int64_t count) {
  convert(out, in, count);
}

float probe_sums(float* out, const float* in) {
  Floats x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = load(in + i * kLanes);
  store(out, sums_of(x));
  for (int i = 0; i < kLanes; ++i) out[kLanes + i] = sum_of(x[i]);
  return largest_of(x[0]);
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
