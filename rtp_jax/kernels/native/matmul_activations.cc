// Before a product: rows of x are packed for the inner loops, as they are or rounded to int8, and
// rows that nobody asked for get zeros.
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

inline float number(float x) { return x; }
inline float number(uint16_t half) { return from_bf16(half); }

template <class Number>
float largest_of(const Number* numbers, int64_t count) {
  float lanes[64] = {};
  int64_t i = 0;
  for (; i + 64 <= count; i += 64)
    for (int64_t lane = 0; lane < 64; ++lane) {
      float magnitude = absolute(number(numbers[i + lane]));
      lanes[lane] = magnitude > lanes[lane] ? magnitude : lanes[lane];
    }
  for (int64_t lane = 0; i < count; ++i, ++lane) {
    float magnitude = absolute(number(numbers[i]));
    lanes[lane] = magnitude > lanes[lane] ? magnitude : lanes[lane];
  }
  return largest(lanes, 64);
}

// Rounds a line of 64 by the inverse of its scale; gives the sum.
template <class Number, class Rounded>
int32_t round_line(const Number* numbers, float inverse, int32_t offset, Rounded* out) {
  int32_t sum = 0;
  for (int64_t i = 0; i < 64; ++i) {
    int32_t value = rounded(number(numbers[i]) * inverse);
    sum += value;
    out[i] = static_cast<Rounded>(value + offset);
  }
  return sum;
}

struct Rounding {
  float scale, inverse;
};

// By the largest magnitude: int8 holds it as 127.
template <class Number>
Rounding rounding_of(const Number* numbers, int64_t count) {
  float scale = largest_of(numbers, count) / kInt8Max;
  if (!(scale > kSmallest)) return {0, 0};
  return {scale, 1 / scale};
}

// Rounds a row, in lines of 64 that lie `step` bytes apart (four times 16 if they stay float32).
template <class Number, class Rounded>
void round_row(const Number* numbers, int64_t inner, int64_t group, int32_t offset, uint8_t* out,
               int64_t step, float* scales, int32_t* sums) {
  constexpr int64_t kLines = static_cast<int64_t>(sizeof(Rounded));
  for (int64_t from = 0; from < inner; from += group) {
    Rounding rounding = rounding_of(numbers + from, group);
    int32_t sum = 0;
    for (int64_t i = from; i < from + group; i += 64) {
      Rounded line[64];
      if (inner - i < 64) {
        Number padded[64] = {};
        memcpy(padded, numbers + i, static_cast<size_t>(inner - i) * sizeof(Number));
        sum += round_line(padded, rounding.inverse, offset, line);
      } else {
        sum += round_line(numbers + i, rounding.inverse, offset, line);
      }
      for (int64_t part = 0; part < kLines; ++part, out += step)
        memcpy(out, line + part * 64 / kLines, kLine);
    }
    *scales++ = rounding.scale;
    if (sums != nullptr) *sums++ = sum;
  }
}

}  // namespace

template <class Number>
void Product::prepare_numbers(int64_t row, uint8_t* out, int64_t step) const {
  thread_local Scratch scratch;
  int64_t inner = call_.inner;
  const auto* numbers = static_cast<const Number*>(call_.x.data) + row * inner;
  if (call_.scheme == Scheme::kInt8Dynamic || is_int4(call_.scheme)) {
    bool grouped = is_int4(call_.scheme);
    int64_t group = grouped ? kGroup : inner, at = row * (inner / group);
    int32_t* sums = grouped ? x_sums_ + at : nullptr;
    if (kind_ == Kind::kF32) {
      round_row<Number, float>(numbers, inner, group, 0, out, step, x_scales_ + at, sums);
    } else {
      int32_t offset = kind_ == Kind::kU8 ? 128 : 0;
      round_row<Number, uint8_t>(numbers, inner, group, offset, out, step, x_scales_ + at, sums);
    }
  } else if (kind_ == Kind::kBf16 || !call_.x.bfloat16) {
    spread(numbers, inner, lines_, out, step);
  } else {
    auto* widened = reinterpret_cast<float*>(scratch.get(inner * 4));
    widen(numbers, true, inner, widened);
    spread(widened, inner, lines_, out, step);
  }
}

void Product::prepare_row(int64_t row, uint8_t* out, int64_t step) const {
  if (call_.x.bfloat16) prepare_numbers<uint16_t>(row, out, step);
  else prepare_numbers<float>(row, out, step);
}

void Product::prepare(int64_t item) const {
  if (item < tiles_) prepare_tile(item);
  else write_zeros(item - tiles_);
}

void Product::write_zeros(int64_t item) const {
  int64_t outputs = call_.epilogue == Epilogue::kSiluMul ? 1 : call_.weights;
  int64_t from = call_.rows + item * kZeroRows;
  int64_t rows = call_.total - from < kZeroRows ? call_.total - from : kZeroRows;
  for (int64_t i = 0; i < outputs; ++i) {
    int64_t bytes = call_.outer[i] * (call_.outputs[i].bfloat16 ? 2 : 4);
    memset(static_cast<uint8_t*>(call_.outputs[i].data) + from * bytes, 0,
           static_cast<size_t>(rows * bytes));
  }
}

void Product::prepare_tile(int64_t tile) const {
  uint8_t* out = packed_ + tile * lines_ * tile_rows_ * kLine;
  for (int64_t r = 0; r < tile_rows_; ++r, out += kLine) {
    if (tile * 16 + r < call_.rows) {
      prepare_row(tile * 16 + r, out, tile_rows_ * kLine);
    } else {
      for (int64_t line = 0; line < lines_; ++line) memset(out + line * tile_rows_ * kLine, 0, kLine);
    }
  }
}

}  // namespace rtp
