// Rows of float32 times matrices of floats, many of the same size at once: the heads of an attention, or one weight.
//
// y[p, m, n] = sum_k x[p, m, k] w[p / SHARE, n, k], fused multiply-adds in float32 from the first k to the last, DEEP
// of them at a time. So a value depends on its two rows alone, and zeros behind the last k change no bit of it.

#pragma once

#include "product.h"

namespace product {

constexpr int DEEP = 256;  // inputs whose weights are laid out at once: with WIDE outputs they fill a first cache

// A stack of matrices whose rows are contiguous.
template <class Byte>
struct Planes {
  Byte* data;
  size_t row, plane;  // bytes from one to the next

  Byte* at(int64_t plane_number, int64_t row_number) const { return data + plane_number * plane + row_number * row; }
};

struct FloatProduct {
  Planes<const char> w, x;
  Planes<char> y;
  int64_t N, K, M;
  int64_t planes, share;  // of x and y; how many of them a plane of w serves
};

struct F32 {
  static constexpr int BYTES = 4;
  static __m512 load(const char* at, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, at); }
};

struct F16 {
  static constexpr int BYTES = 2;
  static __m512 load(const char* at, __mmask16 mask) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, at)); }
};

struct BF16 {
  static constexpr int BYTES = 2;
  static __m512 load(const char* at, __mmask16 mask) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at)), 16));
  }
};

// Weights of WIDE outputs and `count` inputs as [count, WIDE].
template <class Number>
void lay_out(const FloatProduct& p, int64_t plane, int64_t first, int64_t k, int64_t count, float* panel) {
  for (int strip = 0; strip < STRIPS; strip++)
    for (int64_t j = 0; j < count; j += LANES) {
      const __mmask16 mask = count - j >= LANES ? 0xffff : (1u << (count - j)) - 1;
      __m512i rows[LANES];
      for (int i = 0; i < LANES; i++) {
        const int64_t row = first + strip * LANES + i;
        const char* at = p.w.at(plane / p.share, row < p.N ? row : p.N - 1) + (k + j) * Number::BYTES;
        rows[i] = _mm512_castps_si512(Number::load(at, mask));
      }
      transpose(rows);
      for (int i = 0; i < LANES; i++) _mm512_store_si512(panel + (j + i) * WIDE + strip * LANES, rows[i]);
    }
}

// What `count` inputs add to y[plane, row ... row + HIGH - 1, first ... first + WIDE - 1].
inline void float_tile(const FloatProduct& p, int64_t plane, int64_t row, int64_t first, int64_t k, int64_t count,
                       const float* panel) {
  const float* x[HIGH];
  for (int r = 0; r < HIGH; r++)
    x[r] = reinterpret_cast<const float*>(p.x.at(plane, row + r < p.M ? row + r : p.M - 1)) + k;
  __m512 sums[HIGH][STRIPS];
  for (auto& each : sums)
    for (auto& sum : each) sum = _mm512_setzero_ps();
  for (int64_t j = 0; j < count; j++, panel += WIDE) {
    const __m512 left = _mm512_load_ps(panel), right = _mm512_load_ps(panel + LANES);
#pragma GCC unroll 6
    for (int r = 0; r < HIGH; r++) {
      const __m512 value = _mm512_set1_ps(x[r][j]);
      sums[r][0] = _mm512_fmadd_ps(value, left, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(value, right, sums[r][1]);
    }
  }
  for (int r = 0; r < HIGH && row + r < p.M; r++)
    for (int s = 0; s < STRIPS; s++) {
      const int64_t at = first + s * LANES, left = p.N - at;
      if (left <= 0) continue;
      const __mmask16 mask = left >= LANES ? 0xffff : (1u << left) - 1;
      float* y = reinterpret_cast<float*>(p.y.at(plane, row + r)) + at;
      _mm512_mask_storeu_ps(y, mask, k ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), sums[r][s]) : sums[r][s]);
    }
}

template <class Number>
void multiply_floats(const FloatProduct& p, int threads) {
  const int64_t panels = (p.N + WIDE - 1) / WIDE;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t task = 0; task < p.planes * panels; task++) {
    alignas(64) float panel[DEEP * WIDE];
    const int64_t plane = task / panels, first = task % panels * WIDE;
    for (int64_t k = 0; k < p.K; k += DEEP) {
      const int64_t count = p.K - k < DEEP ? p.K - k : DEEP;
      lay_out<Number>(p, plane, first, k, count, panel);
      for (int64_t row = 0; row < p.M; row += HIGH) float_tile(p, plane, row, first, k, count, panel);
    }
  }
}

using MultiplyFloats = void (*)(const FloatProduct&, int);

// By ggml's number of the type of w; null where there is none.
inline MultiplyFloats float_kernel_of(int type) {
  switch (type) {
    case 0: return multiply_floats<F32>;
    case 1: return multiply_floats<F16>;
    case 30: return multiply_floats<BF16>;
    default: return nullptr;
  }
}

}  // namespace product
