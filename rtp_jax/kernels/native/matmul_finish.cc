// What becomes of sums: scales, the epilogue, and numbers in the caller's rows.
#include "matmul.h"
#include "matmul_expand.h"
#include "matmul_finish.h"
#include "matmul_lines.h"
#include "matmul_tile.h"
#include "numbers.h"

namespace rtp {
namespace {

// Reads or writes `count` numbers of a caller's row.
void read(Floats& numbers, const Rows& from, int64_t at, int64_t count) {
  float buffer[16] = {};
  const auto* data = static_cast<const uint8_t*>(from.data) + at * (from.bfloat16 ? 2 : 4);
  widen(data, from.bfloat16, count, buffer);
  load(numbers, buffer);
}

void write(const Floats& numbers, const Rows& to, int64_t at, int64_t count) {
  auto* data = static_cast<uint8_t*>(to.data) + at * (to.bfloat16 ? 2 : 4);
  if (!to.bfloat16) {
    memcpy(data, &numbers, static_cast<size_t>(count) * 4);
    return;
  }
  Halves halves;
  round_to_bf16(numbers, halves);
  memcpy(data, &halves, static_cast<size_t>(count) * 2);
}

}  // namespace

Product::Finish Product::finish_of(const Pair& pair) const {
  bool scaled = has_row_scales(call_.scheme);
  bool narrow = true;
  Finish how{};
  how.pair = pair;
  for (int64_t half = 0; half < 2; ++half) {
    int64_t weight = pair.weight[half], outer = call_.outer[weight];
    how.outer[half] = outer;
    how.column[half] = pair.block[half] * kBlockRows;
    int64_t left = outer - how.column[half];
    how.count[half] = left < kBlockRows ? left : kBlockRows;
    bool written = half == 0 || call_.epilogue != Epilogue::kSiluMul;
    narrow = narrow && left >= kBlockRows && (!written || call_.outputs[weight].bfloat16);
    if (!scaled) continue;
    const uint8_t* tail = pair.data[half] + weight_tiles_ * kTile;
    load(how.scale[half], tail);
    if (kind_ != Kind::kU8) continue;
    load(how.offset[half], tail + kLine);
    how.offset[half] *= 128;
  }
  how.narrow = narrow && (call_.epilogue != Epilogue::kAdd || call_.residual.bfloat16);
  return how;
}

// Finishes rows [row, row + rows) of x, of those that there are, whose sums lie end to end.
void Product::finish(const Finish& how, int64_t row, int64_t rows,
                     const float* sums) const {
  int64_t last = row + rows < call_.rows ? row + rows : call_.rows;
  bool scaled = has_row_scales(call_.scheme);
  if (kind_ == Kind::kU8) finish_rows<true, true>(how, row, last, sums);
  else if (scaled) finish_rows<false, true>(how, row, last, sums);
  else finish_rows<false, false>(how, row, last, sums);
}

template <bool whole, bool scaled>
void Product::finish_rows(const Finish& how, int64_t first, int64_t last, const float* sums) const {
  const Pair& pair = how.pair;
  bool dynamic = call_.scheme == Scheme::kInt8Dynamic || call_.scheme == Scheme::kFp8;
  float unit = kind_ == Kind::kBf16 ? kInt8Bf16Unit : 1.0f;
  auto numbers_of = [&](int64_t row, int64_t half, Floats& out) {
    load(out, sums + (row - first) * kPairColumns + half * 16);
    if constexpr (whole)
      out = __builtin_convertvector((Ints)out - how.offset[half], Floats);
    if constexpr (scaled) out = out * (dynamic ? x_scales_[row] : unit) * how.scale[half];
  };
  if (call_.epilogue == Epilogue::kSiluMul) {
    auto* out = static_cast<uint16_t*>(call_.outputs[0].data) + how.column[0];
    for (int64_t row = first; row < last; ++row) {
      Floats gate, up;
      numbers_of(row, 0, gate);
      numbers_of(row, 1, up);
      apply_silu(gate);
      gate *= up;
      if (how.narrow) {
        Halves halves;
        round_to_bf16(gate, halves);
        store(halves, out + row * how.outer[0]);
      } else {
        write(gate, call_.outputs[0], row * how.outer[0] + how.column[0],
              how.count[0]);
      }
    }
    return;
  }
  bool adds = call_.epilogue == Epilogue::kAdd;
  // Both blocks are neighbours in one matrix.
  const Rows& to = call_.outputs[pair.weight[0]];
  int64_t outer = how.outer[0], column = how.column[0];
  if (!how.narrow) {
    for (int64_t half = 0; half < pair.count; ++half) {
      for (int64_t row = first; row < last; ++row) {
        Floats numbers, residual = {};
        numbers_of(row, half, numbers);
        int64_t at = row * outer + how.column[half];
        if (adds) read(residual, call_.residual, at, how.count[half]);
        write(numbers + residual, to, at, how.count[half]);
      }
    }
    return;
  }
  auto* out = static_cast<uint16_t*>(to.data) + first * outer + column;
  const auto* more = static_cast<const uint16_t*>(call_.residual.data) + first * outer + column;
  bool streams = streams_ && pair.count == 2 && outer * 2 % kLine == 0 &&
                 reinterpret_cast<uintptr_t>(out) % kLine == 0;
  for (int64_t row = first; row < last; ++row, out += outer, more += outer) {
    Halves halves[2];
    for (int64_t half = 0; half < pair.count; ++half) {
      Floats numbers;
      numbers_of(row, half, numbers);
      if (adds) {
        load(halves[half], more + half * kBlockRows);
        numbers += (Floats)(__builtin_convertvector(halves[half], Words) << 16);
      }
      round_to_bf16(numbers, halves[half]);
    }
    if (streams) {
      stream(halves[0], halves[1], out);
      continue;
    }
    for (int64_t half = 0; half < pair.count; ++half) store(halves[half], out + half * kBlockRows);
  }
}

}  // namespace rtp
