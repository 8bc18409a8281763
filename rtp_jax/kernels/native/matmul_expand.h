// Turns tiles of packed weights into tiles of the kind that is multiplied.
#pragma once
#include "matmul_fp8.h"
#include "matmul_lines.h"
#include "matmul_tile.h"

namespace rtp {

// Decoded int8 that becomes bfloat16 is 2^24 times too large: its bytes are read where they lie.
constexpr float kInt8Bf16Unit = 1.0f / (1 << 24);

// One line of int8 (4 numbers of each row) to two lines of bfloat16, all numbers exact.
inline void int8_to_bf16(const uint8_t* in, uint8_t* out) {
  Words word;
  load(word, in);
  Floats n0 = __builtin_convertvector((Ints)(word << 24), Floats);
  Floats n1 = __builtin_convertvector((Ints)(word << 16 & 0xff000000u), Floats);
  Floats n2 = __builtin_convertvector((Ints)(word << 8 & 0xff000000u), Floats);
  Floats n3 = __builtin_convertvector((Ints)(word & 0xff000000u), Floats);
  store((Words)n0 >> 16 | (Words)n1, out);
  store((Words)n2 >> 16 | (Words)n3, out + kLine);
}

inline void int8_to_f32(const uint8_t* in, uint8_t* out) {
  Words word;
  load(word, in);
  for (int i = 0; i < 4; ++i)
    store(__builtin_convertvector((Ints)(word << (24 - 8 * i)) >> 24, Floats), out + i * kLine);
}

inline void bf16_to_f32(const uint8_t* in, uint8_t* out) {
  Words word;
  load(word, in);
  store(word << 16, out);
  store(word & 0xffff0000u, out + kLine);
}

// A tile of pairs to two tiles of bytes 0..15.
inline void int4_to_bytes(const uint8_t* in, uint8_t* out) {
  for (int64_t i = 0; i < kTile; i += kLine) {
    Words word;
    load(word, in + i);
    store(word & 0x0f0f0f0fu, out + i);
    store(word >> 4 & 0x0f0f0f0fu, out + kTile + i);
  }
}

// The same to four tiles: each is one of 64 places where those of the other group of 32 are zeros,
// because tiles of x hold both.
inline void int4_to_halves(const uint8_t* in, uint8_t* out) {
  constexpr int64_t kHalf = kTile / 2;
  for (int64_t i = 0; i < kTile; i += kLine) {
    Words word, none = {};
    load(word, in + i);
    int64_t own = i < kHalf ? i : kTile + i, other = kTile - (i < kHalf ? 0 : kTile) + i;
    store(word & 0x0f0f0f0fu, out + own);
    store(none, out + other);
    store(word >> 4 & 0x0f0f0f0fu, out + 2 * kTile + own);
    store(none, out + 2 * kTile + other);
  }
}

// How many tiles of `kind` one packed tile, or the places of one cell, become.
inline int64_t expansion(Scheme scheme, Kind kind) {
  int64_t numbers = is_grouped(scheme) ? kCell : tile_inner(scheme);
  return numbers / line_inner(kind);
}

// How many tiles of `kind` one group is decoded to, a part of a tile as a whole one.
inline int64_t group_tiles(Scheme scheme, Kind kind) {
  return divided_up(group_of(scheme, kCell), line_inner(kind));
}

// Decodes cells of int4, which lie end to end, or of fp8_block.
template <Kind kind>
inline void expand_cells(Scheme scheme, const uint8_t* in, int64_t cells, uint8_t* out) {
  for (int64_t i = 0; i < cells; ++i, in += cell_bytes(scheme)) {
    if (scheme == Scheme::kFp8Block) {
      expand_fp8<kind>(in, 2, out);
      out += kCell / line_inner(kind) * kTile;
    } else if constexpr (kind == Kind::kF32) {
      alignas(64) uint8_t bytes[2 * kTile];
      int4_to_bytes(in, bytes);
      for (int64_t at = 0; at < 2 * kTile; at += kLine, out += 4 * kLine)
        int8_to_f32(bytes + at, out);
    } else if (group_of(scheme, kCell) < line_inner(kind)) {
      int4_to_halves(in, out);
      out += 4 * kTile;
    } else {
      int4_to_bytes(in, out);
      out += 2 * kTile;
    }
  }
}

// Decodes `tiles` packed tiles, which lie end to end.
template <Kind kind>
inline void expand(Scheme scheme, const uint8_t* in, int64_t tiles, uint8_t* out) {
  if (is_fp8(scheme)) {
    expand_fp8<kind>(in, tiles, out);
    return;
  }
  const uint8_t* end = in + tiles * kTile;
  if constexpr (kind == Kind::kBf16) {
    for (; in < end; in += kLine, out += 2 * kLine) int8_to_bf16(in, out);
  } else if (scheme == Scheme::kBfloat16) {
    for (; in < end; in += kLine, out += 2 * kLine) bf16_to_f32(in, out);
  } else {
    for (; in < end; in += kLine, out += 4 * kLine) int8_to_f32(in, out);
  }
}

}  // namespace rtp
