#pragma once

// What vector_test.cpp asks of cpu/vector.h, in every build.

#include <cstdint>

#include "cpu/capability.h"
#include "cpu/elements.h"

LIBVAR_DECLARE_CPU_BUILDS(int probe_lanes())
LIBVAR_DECLARE_CPU_BUILDS(void probe_exp(float* out, const float* in, std::int64_t count))
LIBVAR_DECLARE_CPU_BUILDS(void probe_load_half(float* out, const Half* in, std::int64_t count))
LIBVAR_DECLARE_CPU_BUILDS(void probe_load_bfloat16(float* out, const Bfloat16* in,
                                                   std::int64_t count))
LIBVAR_DECLARE_CPU_BUILDS(void probe_store_half(Half* out, const float* in, std::int64_t count))
LIBVAR_DECLARE_CPU_BUILDS(void probe_store_bfloat16(Bfloat16* out, const float* in,
                                                    std::int64_t count))
/// out [2][kLanes]: sums_of and sum_of of in [kLanes][kLanes]; returns largest_of(in[0]).
LIBVAR_DECLARE_CPU_BUILDS(float probe_sums(float* out, const float* in))
