// float8_e4m3fn: rounding to it, and packed lines of it as numbers that are multiplied.
//
//     float8     s eeee mmm
//     bfloat16   s 0eeee000 mmm0000      the same bits, but for the exponent of one
//
// Exponents begin 120 apart.  Decoded numbers are 2^8 times too small, which makes the bits that are
// missing those of 0x3800, of which none is where a float8 has some.  The scale of x makes up for it.
// Below 2^-6, where a float8 has no leading one, there are eight numbers: they come from a table.
#pragma once
#include <cstdint>
#include <cstring>

#include "matmul_lines.h"
#include "matmul_tile.h"
#include "numbers.h"

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace rtp {

constexpr float kFp8Max = 448, kFp8Unit = 256;

inline float from_bits(uint32_t bits) {
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

// Rounds |x| <= 448 to a float8, halves to even; NaN stays NaN.
inline float rounded_to_fp8(float x) {
  constexpr uint32_t kOne = 1u << 23;  // of the exponent
  uint32_t bits;
  memcpy(&bits, &x, 4);
  uint32_t exponent = bits & 0x7f800000u, least = 121 * kOne;  // 2^-6
  exponent = exponent < least ? least : exponent;
  // Three places behind the leading one become the ones of an integer.
  float steps = x * from_bits(257 * kOne - exponent);
#if defined(__SSE2__) && !defined(__SSE4_1__)
  steps = steps + 12582912.0f - 12582912.0f;  // see `rounded`
#else
  steps = __builtin_rintf(steps);
#endif
  return steps * from_bits(exponent - 3 * kOne);
}

// Gives the bits of a number rounded to float8; what is too large for it, or NaN, becomes NaN.
inline uint8_t to_fp8(float x) {
  float number = rounded_to_fp8(x), size = absolute(number);
  uint32_t bits, sign;
  memcpy(&sign, &x, 4);
  memcpy(&bits, &size, 4);
  sign = sign >> 24 & 0x80;
  if (!(size <= kFp8Max)) return static_cast<uint8_t>(sign | 0x7f);
  if (size < 0.015625f) return static_cast<uint8_t>(sign | static_cast<uint32_t>(size * 512));
  return static_cast<uint8_t>(sign | ((bits >> 20) - (120 << 3)));
}

inline bool is_nan_fp8(uint8_t bits) { return (bits & 0x7f) == 0x7f; }

// Any but NaN.
inline float from_fp8(uint8_t bits) {
  float size = bits & 0x78 ? from_bits(((bits & 0x7fu) << 20) + (120u << 23))
                           : static_cast<float>(bits & 7) / 512;
  return bits & 0x80 ? -size : size;
}

// The place in a dword of a line where number `i` of four is.
inline int64_t fp8_place(int64_t i) { return i % 2 * 2 + i / 2; }

#if defined(__AVX512BF16__)
// Numbers whose bits are in the high halves of words; `low` has them in the low ones.
inline __m512i fp8_to_halves(__m512i high, __m512i low, __m512i table) {
  constexpr int kAndOr = 0xea;  // (a & b) | c, of a truth table
  __m512i sizes = _mm512_ternarylogic_epi32(_mm512_srli_epi16(high, 4), _mm512_set1_epi16(0x07f0),
                                            _mm512_set1_epi16(0x3800), kAndOr);
  __mmask32 small = _mm512_testn_epi16_mask(high, _mm512_set1_epi16(0x7800));
  sizes = _mm512_mask_permutexvar_epi16(sizes, small, low, table);
  return _mm512_ternarylogic_epi32(high, _mm512_set1_epi16(-0x8000), sizes, kAndOr);
}

// One line (4 numbers of each row) to two lines of bfloat16.
inline void fp8_to_bf16(const uint8_t* in, uint8_t* out) {
  // 0 to 7 times 2^-17, in each of four parts: what is looked up ends with three bits, after zeros.
  const __m512i table = _mm512_broadcast_i32x4(
      _mm_set_epi16(0x3860, 0x3840, 0x3820, 0x3800, 0x37c0, 0x3780, 0x3700, 0));
  __m512i word = _mm512_loadu_si512(in);
  __m512i first = fp8_to_halves(_mm512_slli_epi16(word, 8), word, table);
  __m512i second = fp8_to_halves(word, _mm512_srli_epi16(word, 8), table);
  _mm512_storeu_si512(out, first);
  _mm512_storeu_si512(out + kLine, second);
}
#endif

inline void fp8_to_f32(const uint8_t* in, uint8_t* out) {
  constexpr float kStep = 1.0f / (1 << 17);
  Words word;
  load(word, in);
  for (int i = 0; i < 4; ++i) {
    Words high = word << (24 - 8 * static_cast<int>(fp8_place(i)));
    Words large = (high >> 4 & 0x07f00000u) | 0x38000000u;
    Floats small = __builtin_convertvector((Ints)(high >> 24 & 7u), Floats) * kStep;
    Words sizes = (high & 0x78000000u) == 0 ? (Words)small : large;
    store(sizes | (high & 0x80000000u), out + i * kLine);
  }
}

// Decodes packed tiles, which lie end to end.
template <Kind kind>
inline void expand_fp8(const uint8_t* in, int64_t tiles, uint8_t* out) {
  const uint8_t* end = in + tiles * kTile;
  if constexpr (kind == Kind::kF32) {
    for (; in < end; in += kLine, out += 4 * kLine) fp8_to_f32(in, out);
  }
#if defined(__AVX512BF16__)
  if constexpr (kind == Kind::kBf16) {
    for (; in < end; in += kLine, out += 2 * kLine) fp8_to_bf16(in, out);
  }
#endif
}

}  // namespace rtp
