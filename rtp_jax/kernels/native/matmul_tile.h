// The inner loops of matrix products: up to 32 rows of x times two packed blocks.
//
// x is packed as tiles, like weights: [line of 64 bytes for each row], where a line holds 16 numbers
// float32, 32 bfloat16 or 64 int8 along `inner`.  The dword l of a line meets line l of a weight's
// tile, whatever the kind, so one loop serves all; with AMX one instruction does 16 x 16 of it.
#pragma once
#include <cstdint>
#include <cstring>

#include "matmul.h"

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace rtp {

// What is multiplied: kU8 is x + 128 times int8 weights, kS8 is int8 x times weights 0..15.
enum class Kind { kF32, kBf16, kU8, kS8 };

#if defined(__AVX512BF16__)
constexpr bool kHasBf16 = true;
#else
constexpr bool kHasBf16 = false;
#endif
#if defined(__AVX512VNNI__)
constexpr bool kHasInt8 = true;
#else
constexpr bool kHasInt8 = false;
#endif

constexpr int64_t line_inner(Kind kind) {
  return kind == Kind::kF32 ? 16 : kind == Kind::kBf16 ? 32 : 64;
}

constexpr int64_t kPairColumns = 32;  // of sums: 16 of either block

// Operands of a product.  Sums are words [tiles * 16, kPairColumns], float32 or int32.
struct Operands {
  const uint8_t* x;       // first tile of rows
  int64_t x_stride;       // bytes from a tile of rows to the next
  int64_t rows;           // in a tile: 16, or fewer if there is one tile
  const uint8_t* weight[2];
  int64_t lines;          // tiles along `inner`
  float* sums;
  bool accumulate;        // sums start from what they hold, not from zero
  bool past_l1;           // x is not kept in the L1: it is long, and weights are read again
  const uint8_t* next[2]; // what to fetch meanwhile, `next_lines` lines of 64 bytes for each tile
  int64_t next_lines;
};

inline void fetch_next(const Operands& o, int64_t line) {
  for (int64_t i = line * o.next_lines; i < (line + 1) * o.next_lines; ++i) {
    __builtin_prefetch(o.next[0] + i * kLine, 0, 2);
    __builtin_prefetch(o.next[1] + i * kLine, 0, 2);
  }
}

#if defined(__AMX_TILE__)
// Tile registers of this thread: 0..3 sums, 4..5 x, 6..7 weights.
class TileRegisters {
 public:
  explicit TileRegisters(int64_t rows) {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t columns[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.columns[i] = kLine;
      config.rows[i] = static_cast<uint8_t>(i < 6 ? rows : 16);
    }
    _tile_loadconfig(&config);
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }
};

#define RTP_TILE_MULTIPLY(sum, x, weight)                                  \
  do {                                                                     \
    if constexpr (kind == Kind::kBf16) _tile_dpbf16ps(sum, x, weight);     \
    else if constexpr (kind == Kind::kU8) _tile_dpbusd(sum, x, weight);    \
    else _tile_dpbsud(sum, x, weight);                                     \
  } while (0)

template <Kind kind, int tiles, bool past_l1, class Meanwhile>
inline void multiply_tiles(const Operands& o, const Meanwhile& meanwhile) {
  constexpr int64_t kStride = kPairColumns * 4;
  float* second = o.sums + 16 * kPairColumns;
  if (o.accumulate) {
    _tile_loadd(0, o.sums, kStride);
    _tile_loadd(1, o.sums + 16, kStride);
    if constexpr (tiles == 2) {
      _tile_loadd(2, second, kStride);
      _tile_loadd(3, second + 16, kStride);
    }
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (tiles == 2) {
      _tile_zero(2);
      _tile_zero(3);
    }
  }
  const uint8_t *x = o.x, *w0 = o.weight[0], *w1 = o.weight[1];
  for (int64_t line = 0; line < o.lines; ++line) {
    _tile_loadd(6, w0, kLine);
    if constexpr (past_l1) _tile_stream_loadd(4, x, kLine);
    else _tile_loadd(4, x, kLine);
    RTP_TILE_MULTIPLY(0, 4, 6);
    _tile_loadd(7, w1, kLine);
    RTP_TILE_MULTIPLY(1, 4, 7);
    if constexpr (tiles == 2) {
      if constexpr (past_l1) _tile_stream_loadd(5, x + o.x_stride, kLine);
      else _tile_loadd(5, x + o.x_stride, kLine);
      RTP_TILE_MULTIPLY(2, 5, 6);
      RTP_TILE_MULTIPLY(3, 5, 7);
    }
    x += o.rows * kLine;
    w0 += kTile;
    w1 += kTile;
    fetch_next(o, line);
    meanwhile(line);
  }
  _tile_stored(0, o.sums, kStride);
  _tile_stored(1, o.sums + 16, kStride);
  if constexpr (tiles == 2) {
    _tile_stored(2, second, kStride);
    _tile_stored(3, second + 16, kStride);
  }
}
#undef RTP_TILE_MULTIPLY
#else
class TileRegisters {
 public:
  explicit TileRegisters(int64_t) {}
};
#endif

// Without tiles: kRows rows at a time, sums in vector registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRowsAtOnce = 8, kVectors = 2;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kRowsAtOnce = 6, kVectors = 2;
#else
constexpr int kLanes = 4, kRowsAtOnce = 3, kVectors = 4;
#endif
constexpr int kHalvesAtOnce = kLanes * kVectors / 16;
typedef float Vector __attribute__((vector_size(kLanes * 4)));

template <Kind kind>
inline void multiply_line(Vector& sum, const uint8_t* x, const Vector& weight) {
  if constexpr (kind == Kind::kF32) {
    float number;
    memcpy(&number, x, 4);
    sum += number * weight;
  } else {
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
    int32_t numbers;
    memcpy(&numbers, x, 4);
    __m512i all = _mm512_set1_epi32(numbers), w = (__m512i)weight;
    if constexpr (kind == Kind::kBf16) {
      sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)all, (__m512bh)w);
    } else if constexpr (kind == Kind::kU8) {
      sum = (Vector)_mm512_dpbusd_epi32((__m512i)sum, all, w);
    } else {
      sum = (Vector)_mm512_dpbusd_epi32((__m512i)sum, w, all);
    }
#endif
  }
}

template <Kind kind, int rows>
inline void multiply_rows(const Operands& o, const uint8_t* x, int half, float* sums) {
  Vector sum[rows][kVectors];
  const uint8_t* w[kVectors];
  float* out[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    int column = v * kLanes;  // from the first column of `half`
    w[v] = o.weight[half + column / 16] + column % 16 * 4;
    out[v] = sums + half * 16 + column;
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      if (o.accumulate) memcpy(&sum[r][v], out[v] + r * kPairColumns, sizeof(Vector));
      else sum[r][v] = Vector{};
    }
  for (int64_t line = 0; line < o.lines; ++line, x += o.rows * kLine) {
    if (half == 0 && sums == o.sums) fetch_next(o, line);
    for (int dword = 0; dword < 16; ++dword) {
      Vector weight[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        memcpy(&weight[v], w[v], sizeof(Vector));
        w[v] += kLine;
      }
#pragma GCC unroll 8
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          multiply_line<kind>(sum[r][v], x + r * kLine + dword * 4, weight[v]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int v = 0; v < kVectors; ++v)
      memcpy(out[v] + r * kPairColumns, &sum[r][v], sizeof(Vector));
}

template <Kind kind, int rows>
inline int64_t multiply_all_rows(const Operands& o, const uint8_t* x, int64_t row, float* sums) {
  for (; row + rows <= o.rows; row += rows)
    for (int half = 0; half < 2; half += kHalvesAtOnce)
      multiply_rows<kind, rows>(o, x + row * kLine, half, sums + row * kPairColumns);
  if constexpr (rows > 1) return multiply_all_rows<kind, rows / 2>(o, x, row, sums);
  return row;
}

// Multiplies `tiles` (1 or 2) tiles of rows with a pair of blocks, and calls `meanwhile(line)` for
// each line: tile registers leave time for other work.
template <Kind kind, class Meanwhile>
inline void multiply_pair(const Operands& o, int64_t tiles, const Meanwhile& meanwhile) {
#if defined(__AMX_TILE__)
  if constexpr (kind != Kind::kF32) {
    if (tiles == 1) multiply_tiles<kind, 1, false>(o, meanwhile);
    else if (o.past_l1) multiply_tiles<kind, 2, true>(o, meanwhile);
    else multiply_tiles<kind, 2, false>(o, meanwhile);
    return;
  }
#endif
  for (int64_t line = 0; line < o.lines; ++line) meanwhile(line);
  for (int64_t tile = 0; tile < tiles; ++tile)
    multiply_all_rows<kind, kRowsAtOnce>(
        o, o.x + tile * o.x_stride, 0, o.sums + tile * 16 * kPairColumns);
}

}  // namespace rtp
