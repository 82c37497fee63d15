// The emulator's asynchronous copies and matrix instructions, against the layouts of the PTX ISA.

#include <catch2/catch.hpp>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "cuda/mma.cuh"
#include "element_types.h"
#include "lane_orders.h"

using Catch::Matchers::Contains;
namespace cuda = libvar::cuda;

namespace {

void run(unsigned num_threads, std::size_t shared_bytes, const std::function<void()>& kernel) {
  simt::run_grid({1, 1, 1}, {num_threads, 1, 1}, shared_bytes, kernel);
}

struct Matrices {
  std::uint16_t row[32][8];
};

struct alignas(16) Floats {
  float value[32][4];
};

template <typename T>
std::uint16_t bits_of(double x) {
  return to_element<T>(x).bits;
}

}  // namespace

TEST_CASE("ldmatrix gives each lane two neighbours of a row, or of a column", "[simt]") {
  for_all_lane_orders([] {
    int wrong = 0;
    run(64, sizeof(Matrices), [&] {
      auto& shared = cuda::dynamic_shared<Matrices>();
      const auto lane = static_cast<int>(threadIdx.x % 32);
      if (threadIdx.x < 32) {
        for (int i = 0; i < 8; ++i)
          shared.row[lane][i] = static_cast<std::uint16_t>(100 * (lane / 8) + 10 * (lane % 8) + i);
      }
      __syncthreads();
      std::uint32_t plain[4];
      std::uint32_t transposed[4];
      // The rows may lie anywhere: here the matrices come in reverse.
      cuda::load_matrices(plain, shared.row[31 - lane / 8 * 8 - 7 + lane % 8]);
      cuda::load_matrices_transposed(transposed, shared.row[lane]);
      for (int m = 0; m < 4; ++m) {
        const int row = 10 * (lane / 4);
        const int first = 100 * (3 - m) + row + 2 * (lane % 4);
        if (plain[m] != static_cast<std::uint32_t>(first | ((first + 1) << 16))) ++wrong;
        const int above = 100 * m + 20 * (lane % 4) + lane / 4;
        if (transposed[m] != static_cast<std::uint32_t>(above | ((above + 10) << 16))) ++wrong;
      }
    });
    CHECK(wrong == 0);
  });
}

TEMPLATE_TEST_CASE("mma multiplies fragments as the PTX ISA lays them out", "[simt]", __half,
                   __nv_bfloat16) {
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  double a[16][16];
  double b[16][8];
  double d[16][8];
  for (auto& row : a) {
    for (double& x : row) x = to_double(to_element<TestType>(normal(random)));
  }
  for (auto& row : b) {
    for (double& x : row) x = to_double(to_element<TestType>(normal(random)));
  }
  for (auto& row : d) {
    for (double& x : row) x = static_cast<float>(normal(random));
  }
  const auto word = [](double low, double high) {
    return bits_of<TestType>(low) | (static_cast<std::uint32_t>(bits_of<TestType>(high)) << 16);
  };
  for_all_lane_orders([&] {
    int wrong = 0;
    run(32, 0, [&] {
      const auto lane = static_cast<int>(threadIdx.x);
      const int group = lane >> 2;  // groupID of the ISA's text
      const int member = lane & 3;  // threadID_in_group
      std::uint32_t fragment[4];
      for (int i = 0; i < 8; i += 2) {
        const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        const int column = member * 2 + (i < 4 ? 0 : 8);
        fragment[i / 2] = word(a[row][column], a[row][column + 1]);
      }
      float sum[4];
      for (int i = 0; i < 4; ++i)
        sum[i] = static_cast<float>(d[i < 2 ? group : group + 8][member * 2 + (i & 1)]);
      cuda::multiply_add<TestType>(sum, fragment,
                                   word(b[member * 2][group], b[member * 2 + 1][group]),
                                   word(b[member * 2 + 8][group], b[member * 2 + 9][group]));
      for (int i = 0; i < 4; ++i) {
        const int row = i < 2 ? group : group + 8;
        const int column = member * 2 + (i & 1);
        double expected = d[row][column];
        for (int k = 0; k < 16; ++k) expected += a[row][k] * b[k][column];
        if (!(std::fabs(sum[i] - expected) <= 1e-5)) ++wrong;
      }
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("an asynchronous copy arrives when its group is waited for, no sooner", "[simt]") {
  Floats source;
  for (int i = 0; i < 32; ++i) {
    for (int k = 0; k < 4; ++k) source.value[i][k] = static_cast<float>(10 * i + k);
  }
  for_all_lane_orders([&] {
    int wrong = 0;
    run(16, sizeof(Floats), [&] {
      auto& shared = cuda::dynamic_shared<Floats>();
      const auto thread = static_cast<int>(threadIdx.x);
      const auto arrived = [&](int row, float scale) {
        bool all = true;
        for (int k = 0; k < 4; ++k) all &= shared.value[row][k] == scale * source.value[row][k];
        return all;
      };
      cuda::copy_async(shared.value[thread], source.value[thread], true);
      cuda::commit_copies();
      cuda::copy_async(shared.value[thread + 16], source.value[thread + 16], thread % 2 == 0);
      cuda::commit_copies();
      cuda::commit_copies();  // an empty group counts
      cuda::wait_for_copies<2>();
      if (!arrived(thread, 1.0f) || !std::isnan(shared.value[thread + 16][0])) ++wrong;
      cuda::wait_for_copies<1>();
      if (!arrived(thread + 16, thread % 2 == 0 ? 1.0f : 0.0f)) ++wrong;
      __syncthreads();
      if (!arrived(15 - thread, 1.0f)) ++wrong;
    });
    CHECK(wrong == 0);
  });
}

TEST_CASE("asynchronous copies and matrix loads that no GPU takes are refused", "[simt]") {
  Floats source = {};
  Floats elsewhere = {};
  auto* bytes = reinterpret_cast<unsigned char*>(&source);
  const auto copy = [](void* to, const void* from) {
    cuda::copy_async(to, from, true);
    cuda::commit_copies();
    cuda::wait_for_copies<0>();
  };
  const auto shared = [] { return &cuda::dynamic_shared<unsigned char>(); };
  CHECK_THROWS_WITH(run(1, 64, [&] { copy(shared() + 8, bytes); }), Contains("aligned"));
  CHECK_THROWS_WITH(run(1, 64, [&] { copy(shared(), bytes + 8); }), Contains("aligned"));
  CHECK_THROWS_WITH(run(1, 64, [&] { copy(&elsewhere, bytes); }),
                    Contains("outside of the shared"));
  CHECK_THROWS_WITH(run(1, 64, [&] { copy(shared() + 64, bytes); }),
                    Contains("outside of the shared"));
  CHECK_THROWS_WITH(run(1, 64, [&] { cuda::copy_async(shared(), bytes, true); }),
                    Contains("copies under way"));
  CHECK_THROWS_WITH(run(1, 64,
                        [&] {
                          cuda::copy_async(shared(), bytes, true);
                          cuda::commit_copies();
                        }),
                    Contains("copies under way"));
  std::uint32_t words[4];
  CHECK_THROWS_WITH(run(32, 64, [&] { cuda::load_matrices(words, shared() + 8); }),
                    Contains("aligned"));
  CHECK_THROWS_WITH(run(32, 64, [&] { cuda::load_matrices(words, bytes); }),
                    Contains("outside of the shared"));
  CHECK_THROWS_WITH(run(16, 64, [&] { cuda::load_matrices(words, shared()); }),
                    Contains("lanes that the block does not have"));
  CHECK_THROWS_WITH(run(1, 0, [&] { cuda::load_once(bytes, 4, true); }), Contains("not aligned"));
}

TEMPLATE_TEST_CASE("packed elements come back, and infinities among them are seen", "[simt]",
                   __half, __nv_bfloat16) {
  for (const double x : {0.0, 1.0, -2.5, 65504.0, -0x1p-14, 1.0 / 3.0}) {
    for (const double y : {-0.0, 7.0, -65504.0, 0x1p-24}) {
      const std::uint32_t word = cuda::pack<TestType>(static_cast<float>(x), static_cast<float>(y));
      CHECK(!cuda::has_non_finite<TestType>(word));
      float values[8];
      cuda::unpack<TestType>({{word, 0, word, 0}}, values);
      CHECK(values[4] == to_double(to_element<TestType>(x)));
      CHECK(values[5] == to_double(to_element<TestType>(y)));
      CHECK(values[2] == 0.0f);
    }
    for (const float bad : {NAN, -NAN, INFINITY, -INFINITY}) {
      CHECK(cuda::has_non_finite<TestType>(cuda::pack<TestType>(static_cast<float>(x), bad)));
      CHECK(cuda::has_non_finite<TestType>(cuda::pack<TestType>(bad, static_cast<float>(x))));
    }
  }
}
