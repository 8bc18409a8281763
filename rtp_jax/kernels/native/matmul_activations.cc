// Packs rows of x for the inner loops: as they are, or rounded to int8.
#include <type_traits>

#include "matmul.h"
#include "matmul_tile.h"
#include "numbers.h"

namespace rtp {
namespace {

constexpr float kInt8Max = 127;
constexpr float kSmallest = 1e-37f;  // a scale below has no inverse in float32: such rows are zeros

// Lines of a row lie `step` bytes apart.
template <class Number>
void spread(const Number* numbers, int64_t count, int64_t lines, uint8_t* out, int64_t step) {
  constexpr int64_t kOnLine = kLine / static_cast<int64_t>(sizeof(Number));
  for (int64_t line = 0; line < lines; ++line, out += step) {
    int64_t left = count - line * kOnLine;
    if (left >= kOnLine) {
      memcpy(out, numbers + line * kOnLine, kLine);
      continue;
    }
    memset(out, 0, kLine);
    if (left > 0) memcpy(out, numbers + line * kOnLine, static_cast<size_t>(left) * sizeof(Number));
  }
}

// Rounds to int8 by the largest magnitude; gives the scale.  Rounded numbers are whole float32.
float round_numbers(float* numbers, int64_t count) {
  float scale = largest(numbers, count) / kInt8Max;
  float inverse = scale > kSmallest ? 1 / scale : 0;
  for (int64_t i = 0; i < count; ++i)
    numbers[i] = static_cast<float>(rounded(numbers[i] * inverse));
  return scale > kSmallest ? scale : 0;
}

void to_bytes(const float* numbers, int64_t count, int32_t offset, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i)
    out[i] = static_cast<uint8_t>(static_cast<int32_t>(numbers[i]) + offset);
}

}  // namespace

void Product::prepare_row(int64_t row, uint8_t* out, int64_t step) const {
  thread_local Scratch scratch;
  int64_t inner = call_.inner;
  const auto* source =
      static_cast<const uint8_t*>(call_.x.data) + row * inner * (call_.x.bfloat16 ? 2 : 4);
  if (kind_ == Kind::kBf16) {
    spread(reinterpret_cast<const uint16_t*>(source), inner, lines_, out, step);
    return;
  }
  auto* numbers = reinterpret_cast<float*>(scratch.get(inner * 5));
  auto* bytes = reinterpret_cast<uint8_t*>(numbers + inner);
  widen(source, call_.x.bfloat16, inner, numbers);
  if (call_.scheme == Scheme::kInt8Dynamic) {
    x_scales_[row] = round_numbers(numbers, inner);
  } else if (call_.scheme == Scheme::kInt4) {
    int64_t groups = inner / kGroup;
    for (int64_t g = 0; g < groups; ++g) {
      float* group = numbers + g * kGroup;
      x_scales_[row * groups + g] = round_numbers(group, kGroup);
      int32_t sum = 0;
      for (int64_t i = 0; i < kGroup; ++i) sum += static_cast<int32_t>(group[i]);
      x_sums_[row * groups + g] = sum;
    }
  }
  if (kind_ == Kind::kF32) {
    spread(numbers, inner, lines_, out, step);
    return;
  }
  to_bytes(numbers, inner, kind_ == Kind::kU8 ? 128 : 0, bytes);
  spread(bytes, inner, lines_, out, step);
}

}  // namespace rtp
