// skinny_linear on the CPU, one build per capability.
//
// Work split: one call does a range of weight rows. Memory: each weight row comes from memory once.
// A core reads fastest when it has a few streams in different places: the range is cut into as many
// parts as sums fit into registers, one row of each part is done at a time, and they share each
// load of the input. Pairs of input rows after the first find the weight rows in the cache.
//
// Sums: 32 lanes of floats, those of a block added to those of the blocks before, and nothing
// fused, so that all builds give the same bits and a row's bits do not depend on the other rows.
// The exception is bfloat16 where the processor multiplies it (PairSums).

#include "cpu/skinny_linear_kernel.h"

#include <type_traits>

#include "cpu/group.h"

namespace libvar::cpu::LIBVAR_CPU_NAMESPACE {
namespace {

// Bytes of a weight row whose products are added up before they are added to the row's: keeps the
// rounding error small at any K.
constexpr std::int64_t kBlockBytes = 4096;

// Weights that are multiples of a scale for each row.
template <typename W>
constexpr bool kIsQuantized = std::is_same_v<W, std::int8_t>;

// Weight rows that are read side by side, of one input row and of a pair. Measured with 512-bit
// registers: 3 and 4 are the best, 2 and 8 read a tenth less.
constexpr int kStreams = kLanes == 16 ? 4 : kLanes == 8 ? 2 : 1;
constexpr int kStreamsOfPair = kLanes == 16 ? 4 : 1;

/// Sums of products in 32 lanes of floats. W: element of the weight; T: of input and output.
template <typename W, typename T>
struct GroupSums {
  using Input = float;  ///< in the order in which a group of the weight lies
  using Sum = Group;
  static constexpr std::int64_t kStep = kGroup;

  static LIBVAR_INLINE void prepare(const T* row, std::int64_t count, Input* target) {
    if constexpr (kIsQuantized<W>) {
      T buffer[kStep] = {};
      for (std::int64_t k = 0; k < kStep && k < count; ++k) buffer[k] = row[k];
      store_group(target, load_group<T>(buffer));  // in their own order, as int8 is
    } else {
      store_group(target, count < kStep ? load_partial_group(row, count) : load_group(row));
    }
  }

  static LIBVAR_INLINE Group load_weight(const W* source) { return load_group(source); }

  static LIBVAR_INLINE Group load_partial_weight(const W* source, std::int64_t count) {
    return load_partial_group(source, count);
  }

  static LIBVAR_INLINE void add_products(Sum& sum, const Group& weight, const Input* input) {
    const Group x = load_group(input);
    for (std::int64_t i = 0; i < kParts; ++i) {
      sum.first.part[i] = plus_product(sum.first.part[i], weight.first.part[i], x.first.part[i]);
      sum.second.part[i] =
          plus_product(sum.second.part[i], weight.second.part[i], x.second.part[i]);
    }
  }

  // Where products are exact, fused or not makes no difference but in speed.
  static LIBVAR_INLINE Floats plus_product(Floats sum, Floats a, Floats b) {
    constexpr bool kIsExact = kIsQuantized<W> ? !std::is_same_v<T, float> : std::is_same_v<T, Half>;
    if constexpr (kIsExact) {
      return fma(a, b, sum);
    } else {
      return sum + a * b;
    }
  }

  static LIBVAR_INLINE void add_sum(Sum& sum, const Sum& x) {
    add(sum.first, x.first);
    add(sum.second, x.second);
  }

  static LIBVAR_INLINE float total(Sum sum) {
    add(sum.first, sum.second);
    return sum_of(sum.first);
  }
};

// How the products of a dtype are added up.
template <typename W, typename T>
struct ArithmeticOf {
  using Type = GroupSums<W, T>;
};

#if defined(__AVX512BF16__)
/// Sums of bfloat16 products, two to a lane and instruction.
struct PairSums {
  using Input = Bfloat16;

  struct Sum {
    Floats first, second;
  };

  struct Weight {
    __m512i first, second;
  };

  static constexpr std::int64_t kHalf = 2 * kLanes;
  static constexpr std::int64_t kStep = 2 * kHalf;

  static LIBVAR_INLINE Weight load_weight(const Bfloat16* source) {
    return {_mm512_loadu_si512(source), _mm512_loadu_si512(source + kHalf)};
  }

  static LIBVAR_INLINE Weight load_partial_weight(const Bfloat16* source, std::int64_t count) {
    const std::uint64_t mask = (std::uint64_t{1} << count) - 1;
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask), source),
            _mm512_maskz_loadu_epi16(static_cast<__mmask32>(mask >> kHalf), source + kHalf)};
  }

  static LIBVAR_INLINE void prepare(const Bfloat16* row, std::int64_t count, Input* target) {
    const Weight x = count < kStep ? load_partial_weight(row, count) : load_weight(row);
    _mm512_storeu_si512(target, x.first);
    _mm512_storeu_si512(target + kHalf, x.second);
  }

  static LIBVAR_INLINE Floats dot(__m512i a, __m512i b, Floats sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }

  static LIBVAR_INLINE void add_products(Sum& sum, const Weight& weight, const Input* input) {
    const Weight x = load_weight(input);
    sum.first = dot(weight.first, x.first, sum.first);
    sum.second = dot(weight.second, x.second, sum.second);
  }

  static LIBVAR_INLINE void add_sum(Sum& sum, const Sum& x) {
    sum.first += x.first;
    sum.second += x.second;
  }

  static LIBVAR_INLINE float total(const Sum& sum) { return sum_of(sum.first + sum.second); }
};

template <>
struct ArithmeticOf<Bfloat16, Bfloat16> {
  using Type = PairSums;
};
#endif

/// Sums of products before scale and bias, of kLanes neighbouring weight rows of each stream.
template <int streams>
using Totals = float[kMostInputRows][streams][kLanes];

/// The weight rows n, n + apart, ... times the input rows [m, m + inputs), as lane `lane`.
template <typename W, typename T, int inputs, int outputs>
LIBVAR_INLINE void run_tile(const SkinnyLinear& linear, std::int64_t m, std::int64_t n,
                            std::int64_t apart, std::int64_t lane, Totals<outputs>& totals) {
  using Arithmetic = typename ArithmeticOf<W, T>::Type;
  using Input = typename Arithmetic::Input;
  using Sum = typename Arithmetic::Sum;
  constexpr std::int64_t kStep = Arithmetic::kStep;
  constexpr auto kBlock = static_cast<std::int64_t>(kBlockBytes / sizeof(W));
  static_assert(kBlock % kStep == 0);
  const W* weight[outputs];
  const Input* input[inputs];
  for (int o = 0; o < outputs; ++o)
    weight[o] = static_cast<const W*>(linear.weight) + (n + o * apart) * linear.weight_stride;
  for (int i = 0; i < inputs; ++i) {
    input[i] = reinterpret_cast<const Input*>(linear.prepared_input +
                                              (m + i) * prepared_row_bytes(linear.in_features));
  }
  const auto add_step = [&](Sum(&sum)[inputs][outputs], std::int64_t k, auto load) {
    for (int o = 0; o < outputs; ++o) {
      const auto elements = load(weight[o] + k);
      for (int i = 0; i < inputs; ++i) Arithmetic::add_products(sum[i][o], elements, input[i] + k);
    }
  };
  const std::int64_t whole = linear.in_features / kStep * kStep;
  Sum sum[inputs][outputs] = {};
  for (std::int64_t start = 0; start < whole; start += kBlock) {
    const std::int64_t end = start + kBlock < whole ? start + kBlock : whole;
    Sum block[inputs][outputs] = {};
    for (std::int64_t k = start; k < end; k += kStep) {
      add_step(block, k, [](const W* source) { return Arithmetic::load_weight(source); });
    }
    for (int i = 0; i < inputs; ++i) {
      for (int o = 0; o < outputs; ++o) Arithmetic::add_sum(sum[i][o], block[i][o]);
    }
  }
  if (const std::int64_t rest = linear.in_features - whole; rest != 0) {
    add_step(sum, whole,
             [rest](const W* source) { return Arithmetic::load_partial_weight(source, rest); });
  }
  for (int i = 0; i < inputs; ++i) {
    for (int o = 0; o < outputs; ++o) totals[m + i][o][lane] = Arithmetic::total(sum[i][o]);
  }
}

/// Stores `count` neighbouring outputs of the input row m.
template <typename W, typename T>
LIBVAR_INLINE void store_outputs(const SkinnyLinear& linear, std::int64_t m, std::int64_t n,
                                 std::int64_t count, const float* totals) {
  const auto values = [count](const auto* source) {
    return count == kLanes ? load(source) : load_partial(source, count);
  };
  Floats total = load(totals);
  if constexpr (kIsQuantized<W>) total *= values(linear.weight_scale + n);
  total += linear.bias == nullptr ? Floats{} : values(static_cast<const T*>(linear.bias) + n);
  T* output = static_cast<T*>(linear.output) + m * linear.out_features + n;
  if (count == kLanes) {
    store(output, total);
  } else {
    store_partial(output, total, count);
  }
}

/// The weight rows [begin, end) times all input rows, `streams` of them at a time.
template <typename W, typename T, int streams>
LIBVAR_INLINE void run_streams(const SkinnyLinear& linear, std::int64_t begin, std::int64_t end) {
  const std::int64_t apart = (end - begin) / streams;
  for (std::int64_t done = 0; done < apart; done += kLanes) {
    const std::int64_t count = apart - done < kLanes ? apart - done : kLanes;
    Totals<streams> totals = {};
    for (std::int64_t lane = 0; lane < count; ++lane) {
      const std::int64_t n = begin + done + lane;
      std::int64_t m = 0;
      if constexpr (streams <= kStreamsOfPair) {
        for (; m + 2 <= linear.num_rows; m += 2)
          run_tile<W, T, 2, streams>(linear, m, n, apart, lane, totals);
      }
      for (; m < linear.num_rows; ++m)
        run_tile<W, T, 1, streams>(linear, m, n, apart, lane, totals);
    }
    for (std::int64_t m = 0; m < linear.num_rows; ++m) {
      for (int s = 0; s < streams; ++s)
        store_outputs<W, T>(linear, m, begin + done + s * apart, count, totals[m][s]);
    }
  }
  if constexpr (streams > 1) run_streams<W, T, 1>(linear, begin + apart * streams, end);
}

template <typename W, typename T>
void run_rows(const SkinnyLinear& linear, std::int64_t begin, std::int64_t end) {
  if (linear.num_rows == 1) {
    run_streams<W, T, kStreams>(linear, begin, end);
  } else {
    run_streams<W, T, kStreamsOfPair>(linear, begin, end);
  }
}

template <typename W, typename T>
void prepare(const T* row, std::int64_t in_features, std::byte* target) {
  using Arithmetic = typename ArithmeticOf<W, T>::Type;
  auto* elements = reinterpret_cast<typename Arithmetic::Input*>(target);
  for (std::int64_t k = 0; k < in_features; k += Arithmetic::kStep) {
    Arithmetic::prepare(row + k, in_features - k, elements + k);
  }
}

// Calls f with an element of the weight and one of the input.
template <typename F>
LIBVAR_INLINE void with_types(ElementType type, bool is_quantized, F f) {
  const auto with_weight = [&](auto element) {
    if (is_quantized) return f(std::int8_t(), element);
    return f(element, element);
  };
  switch (type) {
    case ElementType::kFloat:
      return with_weight(float());
    case ElementType::kHalf:
      return with_weight(Half());
    case ElementType::kBfloat16:
      return with_weight(Bfloat16());
  }
}

}  // namespace

void prepare_input(ElementType type, bool is_quantized, const void* row, std::int64_t in_features,
                   std::byte* target) {
  with_types(type, is_quantized, [&](auto weight, auto element) {
    using T = decltype(element);
    prepare<decltype(weight)>(static_cast<const T*>(row), in_features, target);
  });
}

void skinny_linear_rows(const SkinnyLinear& linear, std::int64_t begin, std::int64_t end) {
  with_types(linear.type, linear.weight_scale != nullptr, [&](auto weight, auto element) {
    run_rows<decltype(weight), decltype(element)>(linear, begin, end);
  });
}

}  // namespace libvar::cpu::LIBVAR_CPU_NAMESPACE
