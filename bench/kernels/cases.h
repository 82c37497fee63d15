#pragma once

#include "kernels/harness.h"

namespace libvar::bench {

void register_ceilings(const Options& options);
void register_attention(const Options& options);
void register_redistribute(const Options& options);
void register_norms(const Options& options);
void register_skinny_linear(const Options& options);
void register_layer(const Options& options);

}  // namespace libvar::bench
