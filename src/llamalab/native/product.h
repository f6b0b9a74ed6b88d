// Rows of float32 times a quantised matrix, in whole numbers: AVX-512 VNNI multiplies 64 pairs of bytes at a time.
//
// y[m, n] = sum_k x[m, k] w[n, k]. Every 32 values of x are rounded to 127 steps of a scale of their own; all products
// of a SUB of weights are summed without error in 32 bits, and such sums in float32, from the first to the last.
// So a row of y depends on its row of x and on w alone: not on the other rows, nor on the number of threads.

#pragma once

#include <immintrin.h>
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "formats.h"

namespace product {

constexpr int LANES = 16;               // outputs in a register
constexpr int STRIPS = 2;               // registers of outputs in a panel
constexpr int WIDE = LANES * STRIPS;    // outputs of a panel
constexpr int HIGH = 6;                 // rows of x in a tile
constexpr int STEP = 32;                // values of x that share a scale

// Memory that grows as needed, at the start of a cache line.
template <class T>
class Room {
 public:
  T* of(size_t count) {
    if (count > count_) {
      count_ = 0;
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
      if (!memory_) throw std::bad_alloc();
      count_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t count_ = 0;
};

// x in whole numbers. What an OFFSET or a minimum takes from each sum of products is ready beside it.
struct Rows {
  int8_t* numbers;   // [M, K]
  float* scales;     // [M, K / STEP]
  int32_t* offsets;  // [M, K / SUB]: -OFFSET times the sum of the numbers
  float* sums;       // [M, K / SUB]: the sum of the values
};

// Some outputs' weights, four neighbours of one output side by side as the processor multiplies them.
struct Panel {
  uint8_t* bytes;  // [K / 4, WIDE, 4]
  float* scales;   // [K / SUB, WIDE]
  float* minima;   // [K / SUB, WIDE]
};

struct PanelScratch {
  Room<uint8_t> bytes;
  Room<float> scales, minima;
};

struct Scratch {
  Room<int8_t> numbers;
  Room<float> scales, sums;
  Room<int32_t> offsets;
  std::vector<PanelScratch> panels;  // of each thread
};

template <class Format>
void round_row(const float* x, int64_t K, const Rows& to, int64_t row) {
  constexpr int PER = STEP / Format::SUB;
  int8_t* numbers = to.numbers + row * K;
  for (int64_t b = 0; b < K / STEP; b++) {
    const __m512 low = _mm512_loadu_ps(x + STEP * b), high = _mm512_loadu_ps(x + STEP * b + LANES);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    // Infinity and NaN times zero are NaN: they must not end as numbers.
    const __m512 zero = _mm512_setzero_ps();
    const float poison = _mm512_reduce_add_ps(_mm512_fmadd_ps(low, zero, _mm512_mul_ps(high, zero)));
    const float scale = top / 127 + poison, per = top > 1e-30f ? 127 / top : 0;
    const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, _mm512_set1_ps(per)));
    const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(high, _mm512_set1_ps(per)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + STEP * b), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(numbers + STEP * b + LANES), _mm512_cvtepi32_epi8(second));
    to.scales[row * (K / STEP) + b] = scale;
    const int64_t sums[2] = {_mm512_reduce_add_epi32(first), _mm512_reduce_add_epi32(second)};
    for (int h = 0; h < PER; h++) {
      const int64_t sum = PER == 2 ? sums[h] : sums[0] + sums[1];
      const int64_t at = row * (K / Format::SUB) + b * PER + h;
      if (Format::OFFSET) to.offsets[at] = static_cast<int32_t>(-Format::OFFSET * sum);
      if (Format::MINIMUM) to.sums[at] = scale * static_cast<float>(sum);
    }
  }
}

// 16 rows of 16 groups of four bytes to 16 columns of them.
inline void transpose(__m512i* rows) {
  __m512i t[16];
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    rows[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    rows[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    rows[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    rows[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    rows[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    rows[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    rows[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
}

// Outputs first ... first + WIDE - 1; behind the last of the N the last stands again.
template <class Format>
void unpack(const uint8_t* w, int64_t first, int64_t N, int64_t K, const Panel& to) {
  constexpr int CHUNKS = Format::BLOCK / 64, SCALES = Format::BLOCK / Format::SUB;
  const int64_t row_bytes = K / Format::BLOCK * Format::BYTES;
  for (int strip = 0; strip < STRIPS; strip++) {
    for (int64_t b = 0; b < K / Format::BLOCK; b++) {
      const uint8_t* blocks[LANES];
      __m512i rows[LANES];
      for (int i = 0; i < LANES; i++) {
        const int64_t row = first + strip * LANES + i;
        blocks[i] = w + (row < N ? row : N - 1) * row_bytes + b * Format::BYTES;
        rows[i] = _mm512_castps_si512(Format::scales(blocks[i]));
      }
      const int64_t at = b * SCALES * WIDE + strip * LANES;
      transpose(rows);
      for (int j = 0; j < SCALES; j++) _mm512_store_si512(to.scales + at + j * WIDE, rows[j]);
      if constexpr (Format::MINIMUM) {
        if constexpr (Format::SUB == 16) {
          for (int i = 0; i < LANES; i++) rows[i] = _mm512_castps_si512(Format::minima(blocks[i]));
          transpose(rows);
        }
        constexpr int from = Format::SUB == 16 ? 0 : SCALES;
        for (int j = 0; j < SCALES; j++) _mm512_store_si512(to.minima + at + j * WIDE, rows[from + j]);
      }
      for (int c = 0; c < CHUNKS; c++) {
        for (int i = 0; i < LANES; i++) rows[i] = Format::bytes(blocks[i], c);
        transpose(rows);
        uint8_t* bytes = to.bytes + (b * CHUNKS + c) * 16 * (4 * WIDE) + strip * 64;
        for (int g = 0; g < 16; g++) _mm512_store_si512(bytes + g * (4 * WIDE), rows[g]);
      }
    }
  }
}

// y[row ... row + HIGH - 1, first ... first + WIDE - 1].
template <class Format>
void tile(const Rows& x, const Panel& w, int64_t row, int64_t first, int64_t M, int64_t N, int64_t K, float* y) {
  constexpr int SUB = Format::SUB, PER = STEP / SUB;
  const int8_t* numbers = x.numbers + row * K;
  const uint8_t* bytes = w.bytes;
  __m512 sums[HIGH][STRIPS];
  for (auto& each : sums)
    for (auto& sum : each) sum = _mm512_setzero_ps();
  for (int64_t b = 0; b < K / STEP; b++) {
    __m512 parts[HIGH][STRIPS];
#pragma GCC unroll 2
    for (int h = 0; h < PER; h++) {
      const int64_t sub = b * PER + h;
      __m512i dots[HIGH][STRIPS];
#pragma GCC unroll 6
      for (int r = 0; r < HIGH; r++)
        for (auto& dot : dots[r])
          dot = Format::OFFSET ? _mm512_set1_epi32(x.offsets[(row + r) * (K / SUB) + sub]) : _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int g = 0; g < SUB / 4; g++, bytes += 4 * WIDE) {
        const __m512i left = _mm512_load_si512(bytes), right = _mm512_load_si512(bytes + 64);
#pragma GCC unroll 6
        for (int r = 0; r < HIGH; r++) {
          int32_t four;
          std::memcpy(&four, numbers + r * K + sub * SUB + 4 * g, 4);
          const __m512i value = _mm512_set1_epi32(four);
          dots[r][0] = _mm512_dpbusd_epi32(dots[r][0], left, value);
          dots[r][1] = _mm512_dpbusd_epi32(dots[r][1], right, value);
        }
      }
#pragma GCC unroll 6
      for (int r = 0; r < HIGH; r++)
        for (int s = 0; s < STRIPS; s++) {
          const __m512 scale = _mm512_load_ps(w.scales + sub * WIDE + s * LANES), dot = _mm512_cvtepi32_ps(dots[r][s]);
          parts[r][s] = h ? _mm512_fmadd_ps(dot, scale, parts[r][s]) : _mm512_mul_ps(dot, scale);
          if (Format::MINIMUM) {
            const __m512 sum = _mm512_set1_ps(x.sums[(row + r) * (K / SUB) + sub]);
            sums[r][s] = _mm512_fnmadd_ps(sum, _mm512_load_ps(w.minima + sub * WIDE + s * LANES), sums[r][s]);
          }
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < HIGH; r++)
      for (int s = 0; s < STRIPS; s++)
        sums[r][s] = _mm512_fmadd_ps(parts[r][s], _mm512_set1_ps(x.scales[(row + r) * (K / STEP) + b]), sums[r][s]);
  }
  for (int r = 0; r < HIGH && row + r < M; r++)
    for (int s = 0; s < STRIPS; s++) {
      const int64_t at = first + s * LANES, left = N - at;
      if (left > 0) _mm512_mask_storeu_ps(y + (row + r) * N + at, left >= LANES ? 0xffff : (1u << left) - 1, sums[r][s]);
    }
}

// y (M, N) = x (M, K) times the transpose of w (N, K); K is a multiple of BLOCK.
template <class Format>
void multiply(const uint8_t* w, const float* x, float* y, int64_t N, int64_t K, int64_t M, int threads, Scratch& scratch) {
  const int64_t tall = (M + HIGH - 1) / HIGH * HIGH, subs = K / Format::SUB;
  const Rows rows{scratch.numbers.of(tall * K), scratch.scales.of(tall * (K / STEP)), scratch.offsets.of(tall * subs),
                  scratch.sums.of(tall * subs)};
  if (scratch.panels.size() < static_cast<size_t>(threads)) scratch.panels.resize(threads);
  std::vector<Panel> panels;  // all of it before the threads begin: none of them may fail
  for (int i = 0; i < threads; i++) {
    PanelScratch& each = scratch.panels[i];
    panels.push_back({each.bytes.of(WIDE * K), each.scales.of(WIDE * subs), each.minima.of(WIDE * subs)});
  }
#pragma omp parallel num_threads(threads)
  {
    const Panel& panel = panels[omp_get_thread_num()];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < tall; row++) round_row<Format>(x + (row < M ? row : M - 1) * K, K, rows, row);
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < N; first += WIDE) {
      unpack<Format>(w, first, N, K, panel);
      for (int64_t row = 0; row < tall; row += HIGH) tile<Format>(rows, panel, row, first, M, N, K, y);
    }
  }
}

using Multiply = void (*)(const uint8_t*, const float*, float*, int64_t, int64_t, int64_t, int, Scratch&);

struct Kernel {
  Multiply multiply;
  int block;          // weights, in
  size_t bytes;       // so many
};

template <class Format>
constexpr Kernel kernel() {
  return {multiply<Format>, Format::BLOCK, Format::BYTES};
}

// By ggml's number of the type; without `multiply` where there is none.
inline Kernel kernel_of(int type) {
  using namespace formats;
  switch (type) {
    case 2: return kernel<Q4_0>();
    case 3: return kernel<Q4_1>();
    case 6: return kernel<Q5_0>();
    case 7: return kernel<Q5_1>();
    case 8: return kernel<Q8_0>();
    case 10: return kernel<Q2_K>();
    case 11: return kernel<Q3_K>();
    case 12: return kernel<Q4_K>();
    case 13: return kernel<Q5_K>();
    case 14: return kernel<Q6_K>();
    case 20: return kernel<IQ4_NL>();
    case 23: return kernel<IQ4_XS>();
    default: return {nullptr, 1, 1};
  }
}

}  // namespace product
