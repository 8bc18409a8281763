// Rounds rows of weights to the values of a scheme, as `quant/schemes.py` defines them, to the bit.
// Where a number is NaN or infinite, its group decodes to NaN.
#pragma once
#include <cstring>
#include <limits>

#include "matmul.h"
#include "matmul_fp8.h"
#include "numbers.h"

namespace rtp {

constexpr int32_t kInt4Offset = 8;

inline float inverse_of(float scale) { return scale != 0 ? 1 / scale : 0; }

inline bool is_finite(float x) { return absolute(x) <= std::numeric_limits<float>::max(); }

// Of numbers that no integers stand for.
inline float encode_broken(int64_t count, uint8_t* out) {
  memset(out, 0, static_cast<size_t>(count));
  return __builtin_nanf("");
}

// Rounds numbers to int8; gives the scale.
inline float encode_int8(const float* numbers, int64_t count, uint8_t* out) {
  float scale = largest(numbers, count) / 127.0f, inverse = inverse_of(scale);
  if (!is_finite(scale)) return encode_broken(count, out);
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<uint8_t>(rounded(numbers[i] * inverse));
  return scale;
}

// Rounds numbers to float8; gives the scale.
inline float encode_fp8(const float* numbers, int64_t count, uint8_t* out) {
  float scale = largest(numbers, count) / kFp8Max, inverse = inverse_of(scale);
  for (int64_t i = 0; i < count; ++i) out[i] = to_fp8(numbers[i] * inverse);
  return scale;
}

// The number with the largest magnitude, the first of equals, or NaN; `count` is a multiple of 16.
inline float extreme_of(const float* numbers, int64_t count) {
  float highs[16] = {}, lows[16] = {};
  int32_t broken[16] = {};
  for (int64_t i = 0; i < count; i += 16)
    for (int lane = 0; lane < 16; ++lane) {
      float number = numbers[i + lane];
      highs[lane] = number > highs[lane] ? number : highs[lane];
      lows[lane] = number < lows[lane] ? number : lows[lane];
      broken[lane] |= number != number;
    }
  float high = 0, low = 0;
  for (int lane = 0; lane < 16; ++lane) {
    if (broken[lane]) return __builtin_nanf("");
    high = highs[lane] > high ? highs[lane] : high;
    low = lows[lane] < low ? lows[lane] : low;
  }
  if (high != -low) return high > -low ? high : low;
  for (int64_t i = 0; i < count; ++i)
    if (absolute(numbers[i]) == high) return numbers[i];
  return 0;
}

// Rounds a group to 0..15; gives the scale.
inline float encode_int4(const float* numbers, int64_t count, uint8_t* out) {
  float scale = extreme_of(numbers, count) / -8.0f, inverse = inverse_of(scale);
  if (!is_finite(scale)) return encode_broken(count, out);
  for (int64_t i = 0; i < count; ++i) {
    int32_t value = rounded(numbers[i] * inverse) + kInt4Offset;
    out[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 15 ? 15 : value);
  }
  return scale;
}

// Rounds a row to a byte for each number, and gives a scale for each group.
inline void encode_row(Scheme scheme, const float* numbers, int64_t inner, uint8_t* values,
                       float* scales) {
  int64_t group = group_of(scheme, inner);
  for (int64_t i = 0; i < inner; i += group) {
    if (is_fp8(scheme)) *scales++ = encode_fp8(numbers + i, group, values + i);
    else if (is_int4(scheme)) *scales++ = encode_int4(numbers + i, group, values + i);
    else *scales++ = encode_int8(numbers + i, group, values + i);
  }
}

}  // namespace rtp
