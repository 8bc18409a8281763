// A line of 16 numbers as one value: compilers split it where registers are shorter.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace rtp {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

template <class Line>
inline void load(Line& line, const void* from) {
  memcpy(&line, from, sizeof(Line));
}

template <class Line>
inline void store(const Line& line, void* to) {
  memcpy(to, &line, sizeof(Line));
}

// Writes a whole aligned line past the caches, where the processor can: what many rows leave is more
// than the L2 holds, and would push out what is read again.  `end_streams` comes before others read.
inline void stream(const Halves& low, const Halves& high, void* to) {
#if defined(__AVX512F__)
  __m512i line = _mm512_castsi256_si512((__m256i)low);
  _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_inserti64x4(line, (__m256i)high, 1));
#else
  store(low, to);
  store(high, static_cast<uint8_t*>(to) + sizeof(Halves));
#endif
}

inline void end_streams() {
#if defined(__AVX512F__)
  _mm_sfence();
#endif
}

// Rounds to nearest, halves to even; NaN stays NaN.
inline void round_to_bf16(const Floats& numbers, Halves& out) {
#if defined(__AVX512BF16__)
  out = (Halves)_mm512_cvtneps_pbh((__m512)numbers);
#else
  Words bits = (Words)numbers;
  Words even = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  Words quiet = bits >> 16 | 0x40u;
  out = __builtin_convertvector((Words)(numbers == numbers ? even : quiet), Halves);
#endif
}

// x / (1 + exp(-x)), exp to a few units in the last place.
inline void apply_silu(Floats& x) {
  Floats y = -x;
  y = y < -87.0f ? Floats{} - 87.0f : y;
  y = y > 88.0f ? Floats{} + 88.0f : y;
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23: the last bit counts ones
  Floats shifted = y * 1.44269504f + kShift, whole = shifted - kShift;
  Floats rest = y - whole * 0.693145752f - whole * 1.42860677e-6f;
  Floats series = rest * 1.98756915e-4f + 1.39819995e-3f;  // minimax on [-ln 2 / 2, ln 2 / 2]
  series = series * rest + 8.33345205e-3f;
  series = series * rest + 4.16657962e-2f;
  series = series * rest + 1.66666657e-1f;
  series = series * rest + 5.0e-1f;
  series = series * rest * rest + rest + 1.0f;
  Ints scale = ((Ints)shifted - 0x4b400000 + 127) << 23;
  x = x / (1.0f + series * (Floats)scale);
}

}  // namespace rtp
