// Turns tiles of packed weights into tiles of the kind that is multiplied.
#pragma once
#include "matmul_tile.h"
#include "numbers.h"

namespace rtp {

// Decoded int8 that becomes bfloat16 is 2^24 times too large: its bytes are read where they lie.
constexpr float kInt8Bf16Unit = 1.0f / (1 << 24);

inline int32_t as_int(float x) {
  int32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// One line of int8 (4 numbers of each row) to two lines of bfloat16, both numbers exact.
inline void int8_to_bf16(const uint8_t* in, uint8_t* out) {
  int32_t word[16], low[16], high[16];
  memcpy(word, in, kLine);
  for (int r = 0; r < 16; ++r) {
    constexpr int32_t kTop = static_cast<int32_t>(0xff000000);
    uint32_t w = static_cast<uint32_t>(word[r]);
    int32_t n0 = as_int(static_cast<float>(static_cast<int32_t>(w << 24)));
    int32_t n1 = as_int(static_cast<float>(static_cast<int32_t>(w << 16) & kTop));
    int32_t n2 = as_int(static_cast<float>(static_cast<int32_t>(w << 8) & kTop));
    int32_t n3 = as_int(static_cast<float>(word[r] & kTop));
    low[r] = static_cast<int32_t>(static_cast<uint32_t>(n0) >> 16) | n1;
    high[r] = static_cast<int32_t>(static_cast<uint32_t>(n2) >> 16) | n3;
  }
  memcpy(out, low, kLine);
  memcpy(out + kLine, high, kLine);
}

inline void int8_to_f32(const uint8_t* in, uint8_t* out) {
  int32_t word[16];
  float number[4][16];
  memcpy(word, in, kLine);
  for (int i = 0; i < 4; ++i)
    for (int r = 0; r < 16; ++r)
      number[i][r] = static_cast<float>(
          static_cast<int32_t>(static_cast<uint32_t>(word[r]) << (24 - 8 * i)) >> 24);
  memcpy(out, number, 4 * kLine);
}

inline void bf16_to_f32(const uint8_t* in, uint8_t* out) {
  uint32_t word[16], number[2][16];
  memcpy(word, in, kLine);
  for (int r = 0; r < 16; ++r) {
    number[0][r] = word[r] << 16;
    number[1][r] = word[r] & 0xffff0000u;
  }
  memcpy(out, number, 2 * kLine);
}

// A tile of pairs to two tiles of bytes 0..15.
inline void int4_to_bytes(const uint8_t* in, uint8_t* out) {
  for (int64_t i = 0; i < kTile; i += 4) {
    uint32_t word;
    memcpy(&word, in + i, 4);
    uint32_t low = word & 0x0f0f0f0fu, high = word >> 4 & 0x0f0f0f0fu;
    memcpy(out + i, &low, 4);
    memcpy(out + kTile + i, &high, 4);
  }
}

// How many tiles of `kind` one packed tile (of int4: one group) becomes.
inline int64_t expansion(Scheme scheme, Kind kind) {
  int64_t numbers = scheme == Scheme::kInt4 ? kGroup : tile_inner(scheme);
  return numbers / line_inner(kind);
}

// Decodes `tiles` packed tiles, or groups of int4, which lie end to end.
template <Kind kind>
inline void expand(Scheme scheme, const uint8_t* in, int64_t tiles, uint8_t* out) {
  if (scheme == Scheme::kInt4) {
    for (int64_t i = 0; i < tiles; ++i, in += kTile + kLine) {
      if constexpr (kind == Kind::kF32) {
        alignas(64) uint8_t bytes[2 * kTile];
        int4_to_bytes(in, bytes);
        for (int64_t at = 0; at < 2 * kTile; at += kLine, out += 4 * kLine)
          int8_to_f32(bytes + at, out);
      } else {
        int4_to_bytes(in, out);
        out += 2 * kTile;
      }
    }
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
