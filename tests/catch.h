#pragma once

// Catch2, included after LibTorch: c10 defines CHECK and stays silent about it when Catch came
// first.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#undef CHECK
#undef CHECK_THROWS
#include <catch2/catch.hpp>
