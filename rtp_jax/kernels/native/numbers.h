// Numbers and memory: bfloat16 and float32, rounding, scratch that a thread keeps.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace rtp {

inline float from_bf16(uint16_t half) {
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

// Rounds to nearest, halves to even; NaN stays NaN.
inline uint16_t to_bf16(float number) {
  uint32_t bits;
  memcpy(&bits, &number, 4);
  uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(number != number ? (bits >> 16) | 0x40u : rounded);
}

// Rounds |x| <= 2^22 to an integer, halves to even, in loops that compilers turn into vectors.
inline int32_t rounded(float x) {
#if defined(__SSE2__) && !defined(__SSE4_1__)
  float shifted = x + 12582912.0f;  // 1.5 * 2^23: the last bit counts ones
  int32_t bits;
  memcpy(&bits, &shifted, 4);
  return bits - 0x4b400000;
#else  // where the sum above could be fused with a product, which would then not be rounded itself
  return static_cast<int32_t>(__builtin_rintf(x));
#endif
}

// Narrows a row to bfloat16.
inline void narrow(const float* from, int64_t count, uint16_t* to) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  for (; i + 16 <= count; i += 16) {
    auto halves = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), halves);
  }
#endif
  for (; i < count; ++i) to[i] = to_bf16(from[i]);
}

inline float absolute(float x) { return x < 0 ? -x : x; }

inline void widen(const void* row, bool bfloat16, int64_t count, float* out) {
  if (!bfloat16) {
    memcpy(out, row, static_cast<size_t>(count) * 4);
    return;
  }
  const auto* halves = static_cast<const uint16_t*>(row);
  for (int64_t i = 0; i < count; ++i) out[i] = from_bf16(halves[i]);
}

inline float number_of(float number) { return number; }
inline float number_of(uint16_t half) { return from_bf16(half); }

// The largest magnitude of numbers in float32 or bfloat16; NaN if one of them is.  Magnitudes are
// compared as bits, which have the same order, with infinity and NaN above all others.
template <class Number>
float largest(const Number* numbers, int64_t count) {
  constexpr int64_t kLanes = 64;
  int32_t lanes[kLanes] = {}, high = 0;
  auto compare = [&](int64_t i, int64_t lane) {
    float number = number_of(numbers[i]);
    int32_t bits;
    memcpy(&bits, &number, 4);
    bits &= 0x7fffffff;
    lanes[lane] = bits > lanes[lane] ? bits : lanes[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) compare(i + lane, lane);
  for (int64_t lane = 0; i < count; ++i, ++lane) compare(i, lane);
  for (int64_t lane = 0; lane < kLanes; ++lane) high = lanes[lane] > high ? lanes[lane] : high;
  float number;
  memcpy(&number, &high, 4);
  return number;
}

// Memory that grows and is kept for the next call on this thread; what it held is lost.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { free(memory_); }
  uint8_t* get(int64_t bytes) {
    if (bytes > size_) {
      free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = static_cast<uint8_t*>(aligned_alloc(4096, static_cast<size_t>(size_)));
      if (memory_ == nullptr) {
        size_ = 0;
        throw std::bad_alloc();
      }
    }
    return memory_;
  }

 private:
  uint8_t* memory_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace rtp
