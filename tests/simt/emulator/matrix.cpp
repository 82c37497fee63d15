#include "matrix.h"

#include <cstring>

namespace simt {
namespace {

constexpr int kLanes = 32;

struct LoadLane {
  const unsigned char* row;
  std::uint32_t result[4];
};

// Matrices of 8 rows of 8 elements of 2 bytes. Lane l gets row l / 4, elements 2 (l % 4) and the
// next one; transposed, column l / 4, rows 2 (l % 4) and the next one.
template <bool kTransposed>
void load(void* const (&lanes)[kLanes]) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    std::uint16_t element[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(element[row], static_cast<LoadLane*>(lanes[8 * matrix + row])->row, 16);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int major = lane / 4;
      const int minor = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? element[minor][major] : element[major][minor];
      const std::uint32_t high =
          kTransposed ? element[minor + 1][major] : element[major][minor + 1];
      static_cast<LoadLane*>(lanes[lane])->result[matrix] = low | (high << 16);
    }
  }
}

struct MultiplyLane {
  float* d;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

float value_of(__nv_bfloat16 x) {
  return __bfloat162float(x);
}

float value_of(__half x) {
  return __half2float(x);
}

template <typename T>
float half_of(std::uint32_t word, int index) {
  return value_of(T{static_cast<std::uint16_t>(word >> (16 * index))});
}

// With g = lane / 4 and t = lane % 4:
//   a, 16 x 16  a0 a1: row g, columns 2t 2t+1    a2 a3: row g + 8, same columns
//               a4 a5: row g, columns 2t+8 2t+9  a6 a7: row g + 8, same columns
//   b, 16 x 8   b0 b1: rows 2t 2t+1, column g    b2 b3: rows 2t+8 2t+9, column g
//   d, 16 x 8   d0 d1: row g, columns 2t 2t+1    d2 d3: row g + 8, same columns
template <typename T>
void multiply(void* const (&lanes)[kLanes]) {
  float a[16][16];
  float b[8][16];  // transposed
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* own = static_cast<const MultiplyLane*>(lanes[lane]);
    const int g = lane / 4;
    const int t = lane % 4;
    for (int i = 0; i < 2; ++i) {
      a[g][2 * t + i] = half_of<T>(own->a[0], i);
      a[g + 8][2 * t + i] = half_of<T>(own->a[1], i);
      a[g][2 * t + 8 + i] = half_of<T>(own->a[2], i);
      a[g + 8][2 * t + 8 + i] = half_of<T>(own->a[3], i);
      b[g][2 * t + i] = half_of<T>(own->b[0], i);
      b[g][2 * t + 8 + i] = half_of<T>(own->b[1], i);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* own = static_cast<MultiplyLane*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8);
      const int column = 2 * (lane % 4) + i % 2;
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[column][k];
      own->d[i] += sum;
    }
  }
}

}  // namespace

void load_matrices(std::uint32_t (&result)[4], const void* row, bool transposed, Site site) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0)
    fail(site, "ldmatrix needs rows aligned to 16");
  if (!is_shared(row, 16)) fail(site, "ldmatrix outside of the shared memory");
  LoadLane lane{static_cast<const unsigned char*>(row), {}};
  warp_operation(transposed ? &load<true> : &load<false>, &lane, site);
  std::memcpy(result, lane.result, sizeof(result));
}

template <typename T>
void multiply_add(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  Site site) {
  MultiplyLane lane{d, a, b};
  warp_operation(&multiply<T>, &lane, site);
}

template void multiply_add<__half>(float (&)[4], const std::uint32_t (&)[4],
                                   const std::uint32_t (&)[2], Site);
template void multiply_add<__nv_bfloat16>(float (&)[4], const std::uint32_t (&)[4],
                                          const std::uint32_t (&)[2], Site);

}  // namespace simt
