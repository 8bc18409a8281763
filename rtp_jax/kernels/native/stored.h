// How the numbers of a head lie in KV pages: float32, bfloat16 bits, int8 or float8_e4m3fn bits, the
// last two with one scale for each head of a token.
#pragma once
#include <algorithm>
#include <limits>

#include "numbers.h"

namespace rtp {

enum class Stored : int32_t { kFloat32, kBfloat16, kInt8, kFloat8 };

constexpr float kSmallestScale = 1e-30f;  // of a head that is all zeros

inline int64_t bytes_of(Stored stored) {
  return stored == Stored::kFloat32 ? 4 : stored == Stored::kBfloat16 ? 2 : 1;
}

// The number that the largest of a head is stored as.
inline float largest_of(Stored stored) { return stored == Stored::kInt8 ? 127.0f : 448.0f; }

// float8_e4m3fn as bfloat16 bits, which hold every one of its numbers.
struct Float8Table {
  uint16_t bits[256];
  constexpr Float8Table() : bits() {
    for (int code = 0; code < 256; ++code) {
      int exponent = (code >> 3) & 15, mantissa = code & 7, result = 0;
      if ((code & 0x7f) == 0x7f) {
        result = 0x7fc0;
      } else if (exponent) {
        result = (exponent + 120) << 7 | mantissa << 4;
      } else if (mantissa) {  // mantissa * 2^-9
        int shift = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;
        result = (118 + shift) << 7 | ((mantissa << (7 - shift)) & 0x7f);
      }
      bits[code] = static_cast<uint16_t>(result | (code & 0x80) << 8);
    }
  }
};
constexpr Float8Table kFloat8;

// Rounds |x| < 464 to float8_e4m3fn, halves to even.
inline uint8_t to_float8(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t size = bits & 0x7fffffffu;
  const float magnitude = absolute(x);
  // From 2^-6 on there are three bits behind the first; below, steps of 2^-9.
  const uint32_t normal = ((size + 0x7ffffu + (size >> 20 & 1u)) >> 20) - (120u << 3);
  const uint32_t small = static_cast<uint32_t>(rounded(magnitude < 1.0f ? magnitude * 512.0f : 0));
  const uint32_t code = magnitude < 0.015625f ? small : normal;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80u));
}

inline void widen_row(Stored stored, const char* from, int64_t count, float* to) {
  if (stored == Stored::kFloat32) {
    std::memcpy(to, from, count * 4);
  } else if (stored == Stored::kBfloat16) {
    widen(from, true, count, to);
  } else if (stored == Stored::kInt8) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<signed char>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i)
      to[i] = from_bf16(kFloat8.bits[static_cast<unsigned char>(from[i])]);
  }
}

// Stores a head and returns its scale, by which it is divided in int8 and float8; 1 for the others.
// A head with a number that is none has a scale that is none, so that nobody takes it for zeros.
inline float store_row(Stored stored, const float* from, int64_t count, char* to) {
  if (stored == Stored::kFloat32) {
    memcpy(to, from, static_cast<size_t>(count) * 4);
    return 1.0f;
  }
  if (stored == Stored::kBfloat16) {
    auto* halves = reinterpret_cast<uint16_t*>(to);
    narrow(from, count, halves);
    return 1.0f;
  }
  uint32_t top = 0;  // magnitudes as bits: in the order of numbers, with infinities and NaN above
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, from + i, 4);
    top = std::max(top, bits & 0x7fffffffu);
  }
  float high;
  memcpy(&high, &top, 4);
  if (top >= 0x7f800000u) {
    memset(to, 0, static_cast<size_t>(count));
    return std::numeric_limits<float>::quiet_NaN();
  }
  const float scale = std::max(high / largest_of(stored), kSmallestScale);
  if (stored == Stored::kInt8) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<char>(rounded(from[i] / scale));
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<char>(to_float8(from[i] / scale));
  }
  return scale;
}

}  // namespace rtp
