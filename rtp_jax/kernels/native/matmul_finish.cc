// What becomes of sums: scales, the epilogue, and numbers in the caller's rows.
#include "matmul.h"
#include "matmul_expand.h"
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

// How the sums of a block become numbers: (sum - offset) * factor of the row * scale.
struct Product::Scaling {
  Floats scale[2];
  Ints offset[2];
  int64_t outer[2], column[2], count[2];
};

void Product::finish(const Pair& pair, int64_t tile, const float* sums) const {
  bool scaled = call_.scheme == Scheme::kInt8 || call_.scheme == Scheme::kInt8Dynamic;
  bool narrow = true;  // whole lines of bfloat16
  Scaling scaling{};
  for (int64_t half = 0; half < 2; ++half) {
    int64_t weight = pair.weight[half], outer = call_.outer[weight];
    scaling.outer[half] = outer;
    scaling.column[half] = pair.block[half] * kBlockRows;
    int64_t left = outer - scaling.column[half];
    scaling.count[half] = left < kBlockRows ? left : kBlockRows;
    bool written = half == 0 || call_.epilogue != Epilogue::kSiluMul;
    narrow = narrow && left >= kBlockRows && (!written || call_.outputs[weight].bfloat16);
    if (!scaled) continue;
    const uint8_t* tail = pair.data[half] + weight_tiles_ * kTile;
    load(scaling.scale[half], tail);
    load(scaling.offset[half], tail + kLine);
    scaling.offset[half] *= 128;
  }
  narrow = narrow && (call_.epilogue != Epilogue::kAdd || call_.residual.bfloat16);
  if (kind_ == Kind::kU8) finish_rows<true, true>(pair, scaling, narrow, tile, sums);
  else if (scaled) finish_rows<false, true>(pair, scaling, narrow, tile, sums);
  else finish_rows<false, false>(pair, scaling, narrow, tile, sums);
}

template <bool whole, bool scaled>
void Product::finish_rows(const Pair& pair, const Scaling& scaling, bool narrow, int64_t tile,
                          const float* sums) const {
  bool dynamic = call_.scheme == Scheme::kInt8Dynamic;
  float unit = kind_ == Kind::kBf16 ? kInt8Bf16Unit : 1.0f;
  int64_t first = tile * 16, last = first + 16 < call_.rows ? first + 16 : call_.rows;
  auto numbers_of = [&](int64_t row, int64_t half, Floats& out) {
    load(out, sums + (row - first) * kPairColumns + half * 16);
    if constexpr (whole)
      out = __builtin_convertvector((Ints)out - scaling.offset[half], Floats);
    if constexpr (scaled) out = out * (dynamic ? x_scales_[row] : unit) * scaling.scale[half];
  };
  if (call_.epilogue == Epilogue::kSiluMul) {
    auto* out = static_cast<uint16_t*>(call_.outputs[0].data) + scaling.column[0];
    for (int64_t row = first; row < last; ++row) {
      Floats gate, up;
      numbers_of(row, 0, gate);
      numbers_of(row, 1, up);
      apply_silu(gate);
      gate *= up;
      if (narrow) {
        Halves halves;
        round_to_bf16(gate, halves);
        store(halves, out + row * scaling.outer[0]);
      } else {
        write(gate, call_.outputs[0], row * scaling.outer[0] + scaling.column[0],
              scaling.count[0]);
      }
    }
    return;
  }
  bool adds = call_.epilogue == Epilogue::kAdd;
  // Both blocks are neighbours in one matrix.
  const Rows& to = call_.outputs[pair.weight[0]];
  int64_t outer = scaling.outer[0], column = scaling.column[0];
  if (!narrow) {
    for (int64_t half = 0; half < pair.count; ++half) {
      for (int64_t row = first; row < last; ++row) {
        Floats numbers, residual = {};
        numbers_of(row, half, numbers);
        int64_t at = row * outer + scaling.column[half];
        if (adds) read(residual, call_.residual, at, scaling.count[half]);
        write(numbers + residual, to, at, scaling.count[half]);
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
