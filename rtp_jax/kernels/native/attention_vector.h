// Vectors of float32 as wide as the level has them, in the compiler's own vector types.
#pragma once
#include <cstdint>

namespace rtp::paged {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef float LooseFloats __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Floats load(const float* from) { return *reinterpret_cast<const LooseFloats*>(from); }
inline void store(float* to, Floats x) { *reinterpret_cast<LooseFloats*>(to) = x; }
inline Floats spread(float x) { return x - Floats{}; }
inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// 2^x for x <= 0, within 2 units in the last place; 0 below -126.
inline Floats exp2_of(Floats x) {
  const Floats magic = spread(12582912.0f);  // 1.5 * 2^23: its sum with x has round(x) lowest
  Floats bounded = larger(x, spread(-126.0f));
  Floats shifted = bounded + magic;
  Floats part = bounded - (shifted - magic);  // in [-0.5, 0.5]
  // Coefficients of 2^part, minimax of degree 6: relative error 2e-9 before roundings.
  Floats sum = spread(1.534581165e-04f);
  sum = sum * part + 1.339993122e-03f;
  sum = sum * part + 9.618488958e-03f;
  sum = sum * part + 5.550328777e-02f;
  sum = sum * part + 2.402264689e-01f;
  sum = sum * part + 6.931472057e-01f;
  sum = sum * part + 1.0f;
  Floats power = (Floats)((Ints)sum + ((Ints)shifted << 23));
  return x < -126.0f ? Floats{} : power;
}

// tanh(x), within 1e-6 of it: 1 - 2 / (e^2|x| + 1), with the sign of x.
inline Floats tanh_of(Floats x) {
  Floats size = x < 0.0f ? -x : x;
  Floats small = exp2_of(size * -2.88539008f);  // e^(-2|x|)
  Floats high = (1.0f - small) / (1.0f + small);
  return x < 0.0f ? -high : high;
}

inline float exp2_of(float x) { return exp2_of(spread(x))[0]; }

}  // namespace rtp::paged
