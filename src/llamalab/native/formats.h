// How ggml's quantised types lie in a file, taken apart for whole numbers: a weight is scale * (byte - OFFSET) - minimum.
//
// A format has
//   BLOCK    weights that share one header, a multiple of 64, in BYTES bytes;
//   SUB      weights, 16 or 32, that share a scale and a minimum;
//   OFFSET   what the bytes are above the numbers they stand for;
//   MINIMUM  whether there are minima;
//   scales   (block), 16 floats: the scales, and behind those of SUB = 32 the minima;
//   minima   (block), 16 floats, where SUB is 16 and there are minima;
//   bytes    (block, c): weights 64 c ... 64 c + 63 of the block, one byte each.
//
// Source: the layouts are those of the structs in ggml-common.h; the tests compare with the gguf package.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace formats {

inline float half(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return _cvtsh_ss(bits);
}

inline __m512i joined(__m256i low, __m256i high) { return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1); }

inline __m128i load16(const uint8_t* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

inline __m256i load32(const uint8_t* at) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)); }

// Bits `shift` and above of every byte, as many as `mask` keeps.
inline __m256i bits(__m256i bytes, int shift, int mask) {
  return _mm256_and_si256(_mm256_srl_epi16(bytes, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(static_cast<char>(mask)));
}

// 16 bytes of two numbers each: the lower halves, then the upper ones.
inline __m256i nibbles(const uint8_t* at) {
  const __m128i both = load16(at), mask = _mm_set1_epi8(15);
  return _mm256_set_m128i(_mm_and_si128(_mm_srli_epi16(both, 4), mask), _mm_and_si128(both, mask));
}

// 16 where a bit of the 32 at `at` is set.
inline __m256i fifth_bits(const uint8_t* at) {
  uint32_t set;
  std::memcpy(&set, at, 4);
  return _mm256_maskz_set1_epi8(set, 16);
}

inline __m512 floats(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }

// `low` eight times, then `high`.
inline __m512 halves(float low, float high) {
  return _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(low), _mm512_set1_ps(high));
}

// Scales and minima of Q4_K and Q5_K: eight of six bits each in twelve bytes.
inline __m512 six_bits(const uint8_t* block) {
  uint32_t a, b, c;
  std::memcpy(&a, block + 4, 4);
  std::memcpy(&b, block + 8, 4);
  std::memcpy(&c, block + 12, 4);
  const uint32_t six = 0x3f3f3f3f, four = 0x0f0f0f0f, two = 0x30303030;
  const __m128i q = _mm_setr_epi32(a & six, (c & four) | (a >> 2 & two), b & six, (c >> 4 & four) | (b >> 2 & two));
  return _mm512_mul_ps(floats(q), halves(half(block), half(block + 2)));
}

// Scales and minima, if any, of two small blocks.
inline __m512 pairs(float first, float second, float third = 0, float fourth = 0) {
  return _mm512_castps128_ps512(_mm_setr_ps(first, second, third, fourth));
}

struct Q4_K {
  static constexpr int BLOCK = 256, BYTES = 144, SUB = 32, OFFSET = 0;
  static constexpr bool MINIMUM = true;
  static __m512 scales(const uint8_t* block) { return six_bits(block); }
  static __m512i bytes(const uint8_t* block, int c) {
    const __m256i both = load32(block + 16 + 32 * c);
    return joined(bits(both, 0, 15), bits(both, 4, 15));
  }
};

struct Q5_K {
  static constexpr int BLOCK = 256, BYTES = 176, SUB = 32, OFFSET = 0;
  static constexpr bool MINIMUM = true;
  static __m512 scales(const uint8_t* block) { return six_bits(block); }
  static __m512i bytes(const uint8_t* block, int c) {
    const __m256i fifth = load32(block + 16), both = load32(block + 48 + 32 * c);
    const __m512i high = joined(bits(fifth, 2 * c, 1), bits(fifth, 2 * c + 1, 1));
    return _mm512_or_si512(joined(bits(both, 0, 15), bits(both, 4, 15)), _mm512_slli_epi16(high, 4));
  }
};

struct Q6_K {
  static constexpr int BLOCK = 256, BYTES = 210, SUB = 16, OFFSET = 32;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) {
    return _mm512_mul_ps(floats(load16(block + 192)), _mm512_set1_ps(half(block + 208)));
  }
  static __m512i bytes(const uint8_t* block, int c) {
    const uint8_t* at = block + 64 * (c / 2);
    const __m256i top = load32(block + 128 + 32 * (c / 2));
    const int low = 4 * (c % 2);
    const __m512i high = joined(bits(top, low, 3), bits(top, low + 2, 3));
    return _mm512_or_si512(joined(bits(load32(at), low, 15), bits(load32(at + 32), low, 15)), _mm512_slli_epi16(high, 4));
  }
};

struct Q2_K {
  static constexpr int BLOCK = 256, BYTES = 84, SUB = 16, OFFSET = 0;
  static constexpr bool MINIMUM = true;
  static __m512 scales(const uint8_t* block) {
    return _mm512_mul_ps(floats(_mm_and_si128(load16(block), _mm_set1_epi8(15))), _mm512_set1_ps(half(block + 80)));
  }
  static __m512 minima(const uint8_t* block) {
    const __m128i upper = _mm_and_si128(_mm_srli_epi16(load16(block), 4), _mm_set1_epi8(15));
    return _mm512_mul_ps(floats(upper), _mm512_set1_ps(half(block + 82)));
  }
  static __m512i bytes(const uint8_t* block, int c) {
    const __m256i four = load32(block + 16 + 32 * (c / 2));
    return joined(bits(four, 4 * (c % 2), 3), bits(four, 4 * (c % 2) + 2, 3));
  }
};

struct Q3_K {
  static constexpr int BLOCK = 256, BYTES = 110, SUB = 16, OFFSET = 4;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) {  // sixteen of six bits in twelve bytes
    uint64_t low;
    uint32_t high;
    std::memcpy(&low, block + 96, 8);
    std::memcpy(&high, block + 104, 4);
    const uint64_t four = 0x0f0f0f0f0f0f0f0f;
    const uint32_t two = 0x30303030;
    const __m128i upper = _mm_setr_epi32(high << 4 & two, high << 2 & two, high & two, high >> 2 & two);
    const __m128i six = _mm_or_si128(_mm_set_epi64x(low >> 4 & four, low & four), upper);
    return _mm512_mul_ps(floats(_mm_sub_epi8(six, _mm_set1_epi8(32))), _mm512_set1_ps(half(block + 108)));
  }
  static __m512i bytes(const uint8_t* block, int c) {
    const __m256i third = load32(block), four = load32(block + 32 + 32 * (c / 2));
    const __m512i high = joined(bits(third, 2 * c, 1), bits(third, 2 * c + 1, 1));
    const __m512i low = joined(bits(four, 4 * (c % 2), 3), bits(four, 4 * (c % 2) + 2, 3));
    return _mm512_or_si512(low, _mm512_slli_epi16(high, 2));
  }
};

struct Q8_0 {
  static constexpr int BLOCK = 64, BYTES = 2 * 34, SUB = 32, OFFSET = 128;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) { return pairs(half(block), half(block + 34)); }
  static __m512i bytes(const uint8_t* block, int) {
    return _mm512_xor_si512(joined(load32(block + 2), load32(block + 36)), _mm512_set1_epi8(-128));
  }
};

struct Q4_0 {
  static constexpr int BLOCK = 64, BYTES = 2 * 18, SUB = 32, OFFSET = 8;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) { return pairs(half(block), half(block + 18)); }
  static __m512i bytes(const uint8_t* block, int) { return joined(nibbles(block + 2), nibbles(block + 20)); }
};

struct Q4_1 {
  static constexpr int BLOCK = 64, BYTES = 2 * 20, SUB = 32, OFFSET = 0;
  static constexpr bool MINIMUM = true;
  static __m512 scales(const uint8_t* block) {
    return pairs(half(block), half(block + 20), -half(block + 2), -half(block + 22));
  }
  static __m512i bytes(const uint8_t* block, int) { return joined(nibbles(block + 4), nibbles(block + 24)); }
};

struct Q5_0 {
  static constexpr int BLOCK = 64, BYTES = 2 * 22, SUB = 32, OFFSET = 16;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) { return pairs(half(block), half(block + 22)); }
  static __m512i bytes(const uint8_t* block, int) {
    const __m512i high = joined(fifth_bits(block + 2), fifth_bits(block + 24));
    return _mm512_or_si512(joined(nibbles(block + 6), nibbles(block + 28)), high);
  }
};

struct Q5_1 {
  static constexpr int BLOCK = 64, BYTES = 2 * 24, SUB = 32, OFFSET = 0;
  static constexpr bool MINIMUM = true;
  static __m512 scales(const uint8_t* block) {
    return pairs(half(block), half(block + 24), -half(block + 2), -half(block + 26));
  }
  static __m512i bytes(const uint8_t* block, int) {
    const __m512i high = joined(fifth_bits(block + 4), fifth_bits(block + 28));
    return _mm512_or_si512(joined(nibbles(block + 8), nibbles(block + 32)), high);
  }
};

// What the numbers 0 ... 15 of IQ4_NL and IQ4_XS stand for, above 128.
inline __m512i unevenly_spaced(__m512i numbers) {
  const __m128i levels = _mm_setr_epi8(1, 24, 45, 63, 79, 93, 106, 118, -127, -115, -103, -90, -75, -59, -39, -15);
  return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), numbers);
}

struct IQ4_NL {
  static constexpr int BLOCK = 64, BYTES = 2 * 18, SUB = 32, OFFSET = 128;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) { return Q4_0::scales(block); }
  static __m512i bytes(const uint8_t* block, int c) { return unevenly_spaced(Q4_0::bytes(block, c)); }
};

struct IQ4_XS {
  static constexpr int BLOCK = 256, BYTES = 136, SUB = 32, OFFSET = 128;
  static constexpr bool MINIMUM = false;
  static __m512 scales(const uint8_t* block) {  // eight of six bits in six bytes
    uint16_t high;
    uint32_t low;
    std::memcpy(&high, block + 2, 2);
    std::memcpy(&low, block + 4, 4);
    int8_t six[16] = {};
    for (int j = 0; j < 8; j++) six[j] = static_cast<int8_t>((low >> (4 * j) & 15) | (high >> (2 * j) & 3) << 4) - 32;
    return _mm512_mul_ps(floats(load16(reinterpret_cast<const uint8_t*>(six))), _mm512_set1_ps(half(block)));
  }
  static __m512i bytes(const uint8_t* block, int c) {
    return unevenly_spaced(joined(nibbles(block + 8 + 32 * c), nibbles(block + 24 + 32 * c)));
  }
};

}  // namespace formats
