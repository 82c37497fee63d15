#pragma once

// The warp's matrix instructions (PTX ISA, "Warp-level matrix instructions"): which lane holds
// which element is written here from the tables of that text, not from the kernels.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "simt.h"

namespace simt {

/// ldmatrix.sync.aligned.m8n8.x4.shared.b16, with `transposed` .trans: lane 8 i + r names row r of
/// matrix i, and result i is this lane's two elements of it.
void load_matrices(std::uint32_t (&result)[4], const void* row, bool transposed, Site site);

/// mma.sync.aligned.m16n8k16.row.col.f32.T.T.f32: d += a b.
template <typename T>
void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  Site site);

}  // namespace simt
