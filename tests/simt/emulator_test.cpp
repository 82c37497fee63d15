// The emulator itself: what CUDA defines it does, and what CUDA leaves undefined it refuses.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <catch2/catch.hpp>

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/device.cuh"
#include "cuda/launch.cuh"
#include "lane_orders.h"

using Catch::Matchers::Contains;

namespace {

void run(unsigned num_threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  simt::run_grid({1, 1, 1}, {num_threads, 1, 1}, shared_bytes, kernel);
}

unsigned bits_of(float x) {
  return std::bit_cast<unsigned>(x);
}

float* shared_floats() {
  return &libvar::cuda::dynamic_shared<float>();
}

}  // namespace

TEST_CASE("every thread of the grid runs once with its own indices", "[simt]") {
  for_all_lane_orders([] {
    std::vector<int> count(4 * 3 * 96);
    simt::run_grid({4, 3, 1}, {32, 3, 1}, 0, [&] {
      const unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
      ++count[block * 96 + threadIdx.y * blockDim.x + threadIdx.x];
    });
    CHECK(count == std::vector<int>(count.size(), 1));
  });
}

TEST_CASE("a kernel that starts beside the previous one meets its writes when it waits", "[simt]") {
  struct Arguments {
    const int* input;
    int* seen;
    bool waits;
  };

  const auto kernel = +[](Arguments args) {
    if (args.waits) libvar::cuda::wait_for_previous_kernel();
    *args.seen = *args.input;
  };
  for (const auto start :
       {libvar::cuda::Start::kAfterPrevious, libvar::cuda::Start::kBesidePrevious}) {
    for (const bool waits : {false, true}) {
      int input = 1, seen = 0;
      simt::set_previous_kernel([&] { input = 2; });
      const auto launch = [&] {
        return libvar::cuda::launch(kernel, 1, 32, 0, nullptr, Arguments{&input, &seen, waits},
                                    start);
      };
      const bool is_right = start == libvar::cuda::Start::kAfterPrevious || waits;
      if (is_right) {
        CHECK(launch() == cudaSuccess);
      } else {
        CHECK_THROWS_WITH(launch(), Catch::Contains("without waiting for the stream's previous"));
      }
      CHECK(seen == (is_right ? 2 : 1));
    }
  }
  simt::set_previous_kernel(nullptr);
}

TEST_CASE("bytes of two words are chosen as CUDA defines", "[simt]") {
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7520u) == 0x77552200u);
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x0146u) == 0x00114466u);
}

TEST_CASE("shuffles, votes and atomics do what CUDA defines", "[simt]") {
  for_all_lane_orders([] {
    int sum = 0;
    run(64, 0, [&] {
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int warp = static_cast<int>(threadIdx.x / 32);
      bool good = __shfl_sync(0xffffffffu, 100 * warp + lane, 5) == 100 * warp + 5;
      good &= __shfl_sync(0xffffffffu, lane, 9, 8) == lane / 8 * 8 + 1;
      good &= __shfl_xor_sync(0xffffffffu, lane, 3) == (lane ^ 3);
      good &= __shfl_down_sync(0xffffffffu, lane, 4) == (lane < 28 ? lane + 4 : lane);
      good &= __shfl_up_sync(0xffffffffu, lane, 4) == (lane >= 4 ? lane - 4 : lane);
      good &= __ballot_sync(0xffffffffu, lane % 2) == 0xaaaaaaaau;
      good &= __any_sync(0xffffffffu, lane == 7) == 1 && __any_sync(0xffffffffu, 0) == 0;
      good &= __all_sync(0xffffffffu, lane < 32) == 1 && __all_sync(0xffffffffu, lane != 7) == 0;
      // Halves of a warp may meet apart.
      if (lane < 16) {
        good &= __ballot_sync(0x0000ffffu, 1) == 0x0000ffffu;
      } else {
        good &= __any_sync(0xffff0000u, 0) == 0;
      }
      __syncwarp();
      atomicAdd(&sum, good ? 1 : 0);
    });
    CHECK(sum == 64);
  });
}

TEST_CASE("a warp reduction gives the same bits in every lane and in every lane order", "[simt]") {
  std::vector<float> input(32);
  std::mt19937 random(7);
  for (float& x : input) x = std::uniform_real_distribution<float>(-1.0f, 1.0f)(random);
  std::vector<unsigned> all;
  for_all_lane_orders([&] {
    run(32, 0, [&] { all.push_back(bits_of(libvar::cuda::warp_sum(input[threadIdx.x]))); });
  });
  CHECK(all == std::vector<unsigned>(all.size(), all[0]));
}

TEST_CASE("a barrier parts writes from reads", "[simt]") {
  for_all_lane_orders([] {
    int wrong = 0;
    run(128, 128 * sizeof(float), [&] {
      for (int round = 0; round < 3; ++round) {
        shared_floats()[threadIdx.x] =
            static_cast<float>(100 * round) + static_cast<float>(threadIdx.x);
        __syncthreads();
        const float expected =
            static_cast<float>(100 * round) + static_cast<float>(127 - threadIdx.x);
        if (!(shared_floats()[127 - threadIdx.x] == expected)) ++wrong;
        __syncthreads();
      }
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("a missing barrier is seen", "[simt]") {
  const auto wrong_reads = [](bool before_reading, bool before_writing) {
    int wrong = 0;
    run(128, 128 * sizeof(float), [&] {
      for (int round = 0; round < 3; ++round) {
        shared_floats()[threadIdx.x] = static_cast<float>(round);
        if (before_reading) __syncthreads();
        if (!(shared_floats()[127 - threadIdx.x] == static_cast<float>(round))) ++wrong;
        if (before_writing) __syncthreads();
      }
    });
    return wrong;
  };
  for_all_lane_orders([&] {
    CHECK(wrong_reads(true, true) == 0);
    CHECK(wrong_reads(false, true) > 0);
    CHECK(wrong_reads(true, false) > 0);
  });
}

TEST_CASE("shared memory that was not written is poison, in every block", "[simt]") {
  int not_poison = 0;
  simt::run_grid({3, 1, 1}, {32, 1, 1}, 32 * sizeof(float), [&] {
    if (!std::isnan(shared_floats()[threadIdx.x])) ++not_poison;
    shared_floats()[threadIdx.x] = 1.0f;
  });
  CHECK(not_poison == 0);
}

TEST_CASE("a barrier that some threads do not reach is refused", "[simt]") {
  // Kernels stand outside of the assertions: a macro's arguments are all on one line for the
  // compiler.
  const auto one_warp = [] {
    if (threadIdx.x < 32) __syncthreads();
  };
  const auto two_places = [] {
    if (threadIdx.x < 40) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  };
  const auto barrier_and_collective = [] {
    if (threadIdx.x < 40) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  };
  for_all_lane_orders([&] {
    CHECK_THROWS_WITH(run(64, 0, one_warp), Contains("divergence") && Contains("has ended"));
    CHECK_THROWS_WITH(run(64, 0, two_places),
                      Contains("divergence") && Contains("emulator_test.cpp"));
    CHECK_THROWS_WITH(run(64, 0, barrier_and_collective),
                      Contains("divergence") && Contains("collective"));
  });
}

TEST_CASE("a mask that does not fit the lanes is refused", "[simt]") {
  for_all_lane_orders([] {
    CHECK_THROWS_WITH(run(32, 0, [] { __syncwarp(0xfffffffeu); }),
                      Contains("leaves out the calling lane"));
    CHECK_THROWS_WITH(run(32, 0,
                          [] {
                            if (threadIdx.x < 31) __ballot_sync(0xffffffffu, 1);
                          }),
                      Contains("divergence") && Contains("has ended"));
    CHECK_THROWS_WITH(run(32, 0,
                          [] {
                            if (threadIdx.x < 16) {
                              __ballot_sync(0xffffffffu, 1);
                            } else {
                              __any_sync(0xffffffffu, 1);
                            }
                          }),
                      Contains("mismatch"));
    CHECK_THROWS_WITH(run(32, 0,
                          [] {
                            if (threadIdx.x < 16) __shfl_sync(0x0000ffffu, 1, 20);
                          }),
                      Contains("outside the mask"));
    CHECK_THROWS_WITH(run(40, 0, [] { __syncwarp(); }),
                      Contains("lanes that the block does not have"));
  });
}

TEST_CASE("the emulator is whole again after an error", "[simt]") {
  for_all_lane_orders([] {
    CHECK_THROWS(run(64, 0, [] {
      if (threadIdx.x == 63) throw std::runtime_error("from inside");
      __syncthreads();
    }));
    int sum = 0;
    run(64, 0, [&] {
      __syncthreads();
      ++sum;
    });
    CHECK(sum == 64);
  });
}

TEST_CASE("blocks and shared memory that no GPU takes are refused", "[simt]") {
  CHECK_THROWS_AS(run(1025, 0, [] {}), simt::Error);
  CHECK_THROWS_AS(run(32, simt::kMaxSharedBytes + 1, [] {}), simt::Error);
}

#if !defined(__SANITIZE_ADDRESS__)  // which stops the program at the write itself
TEST_CASE("a write past the shared memory is refused", "[simt]") {
  CHECK_THROWS_WITH(run(32, 32 * sizeof(float), [] { shared_floats()[threadIdx.x + 1] = 0.0f; }),
                    Contains("write past the dynamic shared memory"));
}
#endif

namespace {

struct CopyArguments {
  int* out;
};

void copy_kernel(CopyArguments args) {
  args.out[blockIdx.x * blockDim.x + threadIdx.x] += 1;
}

}  // namespace

TEST_CASE("launch asks for large shared memory and skips empty grids", "[simt]") {
  std::vector<int> out(64);
  const CopyArguments args{out.data()};
  CHECK(libvar::cuda::launch(&copy_kernel, 0, 32, 0, nullptr, args) == cudaSuccess);
  CHECK(out == std::vector<int>(64, 0));
  CHECK(libvar::cuda::launch(&copy_kernel, 2, 32, 1024, nullptr, args) == cudaSuccess);
  CHECK(out == std::vector<int>(64, 1));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(2);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = 64 * 1024;
  CHECK(cudaLaunchKernelEx(&config, &copy_kernel, args) == cudaErrorInvalidValue);
  CHECK(libvar::cuda::launch(&copy_kernel, 2, 32, 64 * 1024, nullptr, args) == cudaSuccess);
  CHECK(out == std::vector<int>(64, 2));
  CHECK(libvar::cuda::launch(&copy_kernel, std::int64_t{1} << 31, 32, 0, nullptr, args) ==
        cudaErrorInvalidValue);
}

TEST_CASE("half and bfloat16 round to nearest even", "[simt]") {
  // Every half value and every bfloat16 value comes back as it is. An assertion for each would take
  // longer than all else.
  int wrong = 0;
  for (unsigned bits = 0; bits < 0x10000u; ++bits) {
    const __half half{static_cast<std::uint16_t>(bits)};
    const __nv_bfloat16 bfloat{static_cast<std::uint16_t>(bits)};
    if (!std::isnan(__half2float(half)) && __float2half_rn(__half2float(half)).bits != bits)
      ++wrong;
    if (!std::isnan(__bfloat162float(bfloat)) &&
        __float2bfloat16_rn(__bfloat162float(bfloat)).bits != bits)
      ++wrong;
  }
  CHECK(wrong == 0);
  CHECK(std::isnan(__half2float(__float2half_rn(NAN))));
  CHECK(std::isnan(__bfloat162float(__float2bfloat16_rn(NAN))));
  CHECK(__float2half_rn(65519.9f).bits == 0x7bff);
  CHECK(__float2half_rn(65520.0f).bits == 0x7c00);
  CHECK(__float2bfloat16_rn(1.00390625f).bits == 0x3f80);  // a tie: to even
  CHECK(__float2bfloat16_rn(1.01171875f).bits == 0x3f82);
#if defined(__FLT16_MAX__)
  // The compiler's own half type agrees on random floats of every size.
  std::mt19937 random(11);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(static_cast<std::uint32_t>(random()));
    if (std::isnan(x)) continue;
    if (__float2half_rn(x).bits != std::bit_cast<std::uint16_t>(static_cast<_Float16>(x))) ++wrong;
  }
  for (int i = 0; i < 200000; ++i) {
    const float x = std::uniform_real_distribution<float>(-0x1p-13f, 0x1p-13f)(random);
    if (__float2half_rn(x).bits != std::bit_cast<std::uint16_t>(static_cast<_Float16>(x))) ++wrong;
  }
  CHECK(wrong == 0);
#endif
}
