// Before a product: rows of x are packed for the inner loops, as they are or rounded to int8 or
// float8, and rows that nobody asked for get zeros.
#include <limits>

#include "matmul.h"
#include "matmul_fp8.h"
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

// Rounds `count` numbers by the inverse of their scale; gives the sum.
struct ToInt8 {
  static constexpr float kLargest = kInt8Max, kUnit = 1;
  template <int64_t count, class Number, class Rounded>
  int32_t round(const Number* numbers, float inverse, Rounded* out) const {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      int32_t value = rounded(number_of(numbers[i]) * inverse);
      sum += value;
      out[i] = static_cast<Rounded>(value + offset);
    }
    return sum;
  }
  int32_t offset;
};

// To numbers of float8, which bfloat16 holds as well; nobody asks for their sum.
struct ToFp8 {
  static constexpr float kLargest = kFp8Max, kUnit = kFp8Unit;
  template <int64_t count, class Number, class Rounded>
  int32_t round(const Number* numbers, float inverse, Rounded* out) const {
    for (int64_t i = 0; i < count; ++i) {
      float value = rounded_to_fp8(number_of(numbers[i]) * inverse);
      if constexpr (sizeof(Rounded) == 4) {
        out[i] = value;
      } else {
        uint32_t bits;
        memcpy(&bits, &value, 4);
        out[i] = static_cast<Rounded>(bits >> 16);
      }
    }
    return 0;
  }
};

struct Rounding {
  float scale, inverse;
};

// By the largest magnitude, which becomes the largest value; NaN if a number is NaN or infinite.
template <class Number>
Rounding rounding_of(const Number* numbers, int64_t count, float value) {
  float scale = largest(numbers, count) / value;
  if (!(scale <= std::numeric_limits<float>::max())) return {__builtin_nanf(""), 0};
  if (scale <= kSmallest) return {0, 0};
  return {scale, 1 / scale};
}

// Rounds a row, `at_once` numbers of a group after the other, to lines that lie `step` bytes apart.
// Where the last line is not full, as with an odd number of groups of 32, its rest meets zeros.  A
// group whose scale is NaN becomes zeros: its numbers cannot be rounded, and its sums will be NaN.
template <int64_t at_once, class Rounded, class To, class Number>
void round_row(To to, const Number* numbers, int64_t inner, int64_t group, uint8_t* out,
               int64_t step, float* scales, int32_t* sums) {
  constexpr int64_t kBytes = at_once * static_cast<int64_t>(sizeof(Rounded));
  constexpr int64_t kPart = kBytes < kLine ? kBytes : kLine;
  int64_t at = 0;  // in the first line, and in those behind it
  for (int64_t from = 0; from < inner; from += group) {
    Rounding rounding = rounding_of(numbers + from, group, To::kLargest);
    bool broken = rounding.scale != rounding.scale;
    int32_t sum = 0;
    for (int64_t i = from; i < from + group; i += at_once) {
      Rounded line[at_once];
      if (broken || inner - i < at_once) {
        Number padded[at_once] = {};
        if (!broken)
          memcpy(padded, numbers + i, static_cast<size_t>(inner - i) * sizeof(Number));
        sum += to.template round<at_once>(padded, rounding.inverse, line);
      } else {
        sum += to.template round<at_once>(numbers + i, rounding.inverse, line);
      }
      const auto* rounded_bytes = reinterpret_cast<const uint8_t*>(line);
      for (int64_t part = 0; part < kBytes; part += kPart, at += kPart)
        memcpy(out + at / kLine * step + at % kLine, rounded_bytes + part, kPart);
    }
    *scales++ = rounding.scale * To::kUnit;
    if (sums != nullptr) *sums++ = sum;
  }
}

}  // namespace

template <class Number>
void Product::prepare_numbers(int64_t row, uint8_t* out, int64_t step) const {
  thread_local Scratch scratch;
  int64_t inner = call_.inner;
  const auto* numbers = static_cast<const Number*>(call_.x.data) + row * inner;
  if (call_.scheme == Scheme::kInt8Dynamic || is_grouped(call_.scheme) || is_fp8(call_.scheme)) {
    int64_t group = group_of(call_.scheme, inner), at = row * x_groups_;
    float* scales = x_scales_ + at;
    int32_t* sums = is_int4(call_.scheme) ? x_sums_ + at : nullptr;
    ToInt8 to{kind_ == Kind::kU8 ? 128 : 0};
    if (is_fp8(call_.scheme) && kind_ == Kind::kF32)
      round_row<64, float>(ToFp8{}, numbers, inner, group, out, step, scales, sums);
    else if (is_fp8(call_.scheme))
      round_row<64, uint16_t>(ToFp8{}, numbers, inner, group, out, step, scales, sums);
    else if (kind_ == Kind::kF32 && group < 64)
      round_row<32, float>(to, numbers, inner, group, out, step, scales, sums);
    else if (kind_ == Kind::kF32)
      round_row<64, float>(to, numbers, inner, group, out, step, scales, sums);
    else if (group < 64)
      round_row<32, uint8_t>(to, numbers, inner, group, out, step, scales, sums);
    else
      round_row<64, uint8_t>(to, numbers, inner, group, out, step, scales, sums);
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
