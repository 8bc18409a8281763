// A segment of a tile in bfloat16, on the tile registers of AMX.
//
// Scores are computed as K Q^T, so that keys go in as they lie in the pages and each lane is one
// query row: maxima, weights and sums need nothing across lanes.  For 16 rows and a block:
//
//     score[64 keys][16 rows]  = K[64][dim] Q^T         K as it lies, Q packed once for the tile
//     weight[16 rows][64 keys] = 2^(score - high)       rounded to bfloat16, turned by shuffles
//     mixed[16 rows][dim]     += weight V               V with two keys side by side
//
// Where many rows share the keys, a turn takes several blocks: what is mixed is larger than the
// first cache, and storing it there costs more than multiplying, so it is done once for all of
// them.  Weights of one turn therefore share `high`, which follows the largest score only when
// that is `kSlack` above it: weights are at most 2^kSlack, and `high` hardly ever moves.
#pragma once
#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__AVX512BW__)
#define RTP_ATTENTION_AMX
#include <immintrin.h>

#include "attention_finish.h"
#include "attention_rows.h"

namespace rtp::paged {

constexpr int64_t kAmxRows = 16;   // query rows, and keys, of a tile register
constexpr int64_t kAmxDepth = 32;  // bfloat16 numbers of a row of a tile register

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;

// What 16 query rows carry from block to block.
struct alignas(64) AmxGroup {
  float high[16], total[16];
  int32_t first[16], last[16];  // keys that each row sees
  int64_t from, to;             // keys that any row sees; all rows see [all_from, all_to)
  int64_t all_from, all_to;
  uint16_t* query;  // [chunk][pair of dims][row][2]
  float* mixed;     // [dim / 16][row][16]
};

constexpr int64_t kTurn = 4;           // blocks
constexpr int64_t kAskedOnTheWay = 8;  // lines, for each product of tiles
constexpr float kSlack = 8.0f;         // powers of two

// A packed block of keys and values.
struct AmxBlock {
  Rows rows;
  alignas(64) uint16_t key[kMaxHeadDim * kBlock];    // [chunk][key][32]
  alignas(64) uint16_t value[kMaxHeadDim * kBlock];  // [dim / 16][pair of keys][16][2]
};

// Asks for the rows of a later block, a few lines at a time: pages are too short for the processor to
// guess them, and who asks for many lines at once waits until memory has taken them.
struct AmxAhead {
  const char* const* row;  // of the keys, and then of the values
  const char* const* end;
  int64_t bytes, at;

  void take(int64_t lines) {
    for (; lines && row < end; --lines) {
      _mm_prefetch(*row + at, _MM_HINT_T1);
      at += 64;
      if (at >= bytes) at = 0, ++row;
    }
  }
};

inline AmxAhead ahead_of(const Attention& call, const Rows& rows) {
  return {rows.key, rows.value + kBlock, call.head_dim * bytes_of(call.stored), 0};
}

using AmxScores = float[2][kBlock * kAmxRows];  // of two groups: [key][row]

struct alignas(4096) AmxScratch {
  AmxScores scores[2];                     // of this block and of the next
  uint32_t weight[kTurn][2][2 * 16 * 16];  // of two groups: [half of the block][row][pair of keys]
  Rows next;                               // the keys of one turn later
  AmxAhead ahead;                          // what is left to ask of them
  AmxBlock blocks[kTurn];
};

inline int64_t chunks_of(const Attention& call) {
  return (call.head_dim + kAmxDepth - 1) / kAmxDepth;
}
inline int64_t amx_floats(const Attention& call, const Tile& tile) {
  const int64_t groups = tile.heads * ((tile.rows + kAmxRows - 1) / kAmxRows);
  const int64_t dims = chunks_of(call) * kAmxDepth;
  int64_t bytes = sizeof(AmxScratch) + groups * (sizeof(AmxGroup) + dims * kAmxRows * (2 + 4));
  return bytes / 4 + 64;
}

// Rows of 16 numbers of 32 bits become columns.
inline void turn(__m512i (&x)[16]) {
  __m512i y[16];
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; ++i) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
  }
}

// Loads 32 stored numbers as bfloat16; `mask` names those that exist.
template <Stored kStored>
inline __m512i load_chunk(const char* row, int64_t chunk, __mmask32 mask) {
  if constexpr (kStored == Stored::kBfloat16)
    return _mm512_maskz_loadu_epi16(mask, row + chunk * 64);
  __m256i bytes = _mm256_maskz_loadu_epi8(mask, row + chunk * 32);
  if constexpr (kStored == Stored::kInt8) {
    __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
    __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1)));
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
  }
  const __m512i* table = reinterpret_cast<const __m512i*>(kFloat8.bits);
  __m512i code = _mm512_cvtepu8_epi16(bytes);
  __m512i low = _mm512_permutex2var_epi16(_mm512_loadu_si512(table), code,
                                          _mm512_loadu_si512(table + 1));
  __m512i high = _mm512_permutex2var_epi16(_mm512_loadu_si512(table + 2), code,
                                           _mm512_loadu_si512(table + 3));
  __m512i size = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(code, _mm512_set1_epi16(64)), low,
                                         high);
  __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(128)), 8);
  return _mm512_or_si512(size, sign);
}

// Copies a block of keys, unless they are read where they lie, and lays two values side by side, as
// the tile registers want them.
template <Stored kStored, bool kKeys>
inline void pack_block(const Attention& call, AmxBlock& s, AmxAhead& ahead, int64_t lines) {
  const int64_t chunks = chunks_of(call);
  const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8,
                                       39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const int64_t left = call.head_dim - (chunks - 1) * kAmxDepth;
  const __mmask32 last = left >= 32 ? ~0u : (1u << left) - 1;
  for (int64_t k = 0; k < kBlock; k += 2) {
    ahead.take(lines);
    char* key = reinterpret_cast<char*>(s.key) + k * 64;
    char* value = reinterpret_cast<char*>(s.value) + k * 32;
    for (int64_t c = 0; c < chunks; ++c, key += kBlock * 64, value += kBlock * 64) {
      const __mmask32 mask = c + 1 < chunks ? ~0u : last;
      if constexpr (kKeys) {
        _mm512_store_si512(key, load_chunk<kStored>(s.rows.key[k], c, mask));
        _mm512_store_si512(key + 64, load_chunk<kStored>(s.rows.key[k + 1], c, mask));
      }
      __m512i a = load_chunk<kStored>(s.rows.value[k], c, mask);
      __m512i b = load_chunk<kStored>(s.rows.value[k + 1], c, mask);
      _mm512_store_si512(value, _mm512_permutex2var_epi16(a, low, b));
      _mm512_store_si512(value + kBlock * 32, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}

// What was stored by now is in memory: compilers do not know that loading a tile reads it.
inline void settle() { __asm__ volatile("" ::: "memory"); }

// Where the four tiles of a block of keys lie: bytes from row to row, and from chunk to chunk.
struct AmxKeys {
  const char* tile[4];
  int64_t row[4], chunk;
};

inline AmxKeys packed_keys(const AmxBlock& block) {
  const char* key = reinterpret_cast<const char*>(block.key);
  return {{key, key + 1024, key + 2048, key + 3072}, {64, 64, 64, 64}, kBlock * 64};
}

// Whether keys can be read where they lie: a tile of them then has no gap.
inline bool reads_pages(const Attention& call) {
  return call.stored == Stored::kBfloat16 && call.page_size % kAmxRows == 0 &&
         call.head_dim % kAmxDepth == 0;
}

// Keys that nobody sees are read as well, if they share a tile with others: their scores are hidden.
inline AmxKeys keys_in_pages(const Attention& call, const Rows& rows) {
  AmxKeys keys{{}, {}, kAmxDepth * 2};
  for (int64_t t = 0; t < 4; ++t) {
    const int64_t bytes = call.head_dim * 2;
    int64_t k = t * kAmxRows, end = k + kAmxRows;
    while (k < end && rows.key[k] == kZeros) ++k;
    keys.tile[t] = k == end ? kZeros : rows.key[k] - k % kAmxRows * bytes;
    keys.row[t] = k == end ? 0 : bytes;
  }
  return keys;
}

inline void score_one(const uint16_t* query, const AmxKeys& keys, AmxScores& score,
                      int64_t chunks, AmxAhead& ahead) {
  settle();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t at = c * keys.chunk;
    _tile_loadd(4, query + c * 512, 64);
    _tile_loadd(5, keys.tile[0] + at, keys.row[0]);
    _tile_dpbf16ps(0, 5, 4);
    ahead.take(kAskedOnTheWay);
    _tile_loadd(6, keys.tile[1] + at, keys.row[1]);
    _tile_dpbf16ps(1, 6, 4);
    ahead.take(kAskedOnTheWay);
    _tile_loadd(7, keys.tile[2] + at, keys.row[2]);
    _tile_dpbf16ps(2, 7, 4);
    ahead.take(kAskedOnTheWay);
    _tile_loadd(5, keys.tile[3] + at, keys.row[3]);
    _tile_dpbf16ps(3, 5, 4);
    ahead.take(kAskedOnTheWay);
  }
  _tile_stored(0, score[0], 64);
  _tile_stored(1, score[0] + 256, 64);
  _tile_stored(2, score[0] + 512, 64);
  _tile_stored(3, score[0] + 768, 64);
}

// The same for two groups: keys come from the second cache, so they are loaded once for both.
inline void score_two(const uint16_t* query, const uint16_t* other, const AmxBlock& block,
                      AmxScores& score, int64_t chunks) {
  settle();
  for (int64_t half = 0; half < 2; ++half) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < chunks; ++c) {
      const uint16_t* key = block.key + c * kBlock * kAmxDepth + half * 1024;
      _tile_loadd(4, key, 64);
      _tile_loadd(6, query + c * 512, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, other + c * 512, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, key + 512, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, score[0] + half * 512, 64);
    _tile_stored(1, score[1] + half * 512, 64);
    _tile_stored(2, score[0] + half * 512 + 256, 64);
    _tile_stored(3, score[1] + half * 512 + 256, 64);
  }
}

// 2^x for x <= 0: relative error below 3e-6, far below the rounding to bfloat16 that follows.
inline __m512 exp2_short(__m512 x) {
  __m512 part = _mm512_reduce_ps(x, 1);  // x - floor(x)
  __m512 sum = _mm512_set1_ps(1.353416724e-02f);
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(5.201146191e-02f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(2.414427561e-01f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(6.930038346e-01f));
  sum = _mm512_fmadd_ps(sum, part, _mm512_set1_ps(1.000002593f));
  return _mm512_scalef_ps(sum, x);
}

// Makes scores final where they are not simply scaled, and hides keys that a row does not see.
inline void adjust(const Attention& call, const AmxGroup& group, int64_t block, bool hide,
                   const Rows& rows, float* score) {
  const __m512i first = _mm512_load_si512(group.first), last = _mm512_load_si512(group.last);
  for (int64_t k = 0; k < kBlock; ++k) {
    __m512 x = _mm512_load_ps(score + k * 16);
    if (call.scales) x = _mm512_mul_ps(x, _mm512_set1_ps(rows.key_scale[k]));
    if (call.soft_cap > 0)
      x = _mm512_mul_ps((__m512)tanh_of((Floats)x * (call.scale / call.soft_cap)),
                        _mm512_set1_ps(call.soft_cap / call.scale));
    if (hide) {
      __m512i at = _mm512_set1_epi32(static_cast<int32_t>(block + k));
      __mmask16 seen = _mm512_cmple_epi32_mask(first, at) & _mm512_cmpge_epi32_mask(last, at);
      x = _mm512_mask_blend_ps(seen, _mm512_set1_ps(kMasked), x);
    }
    _mm512_store_ps(score + k * 16, x);
  }
}

// Raises `high` where scores of a block are far above it; returns the rows, and in `decay` what
// is left of what was mixed of them before.
inline __mmask16 raise(const Attention& call, AmxGroup& group, const float* score, float* decay) {
  __m512 tops[4];
  for (int i = 0; i < 4; ++i) tops[i] = _mm512_load_ps(score + i * 16);
  for (int64_t k = 4; k < kBlock; k += 4)
    for (int i = 0; i < 4; ++i)
      tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(score + (k + i) * 16));
  __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
  top = _mm512_mul_ps(top, _mm512_set1_ps(call.scale * kLog2E));
  __m512 old = _mm512_load_ps(group.high);
  const __mmask16 grown =
      _mm512_cmp_ps_mask(top, _mm512_add_ps(old, _mm512_set1_ps(kSlack)), _CMP_GT_OQ);
  if (grown) {
    __m512 high = _mm512_mask_mov_ps(old, grown, top);
    __m512 by = (__m512)exp2_of((Floats)_mm512_sub_ps(old, high));
    _mm512_store_ps(decay, by);
    _mm512_store_ps(group.high, high);
    _mm512_store_ps(group.total, _mm512_mul_ps(_mm512_load_ps(group.total), by));
  }
  return grown;
}

inline void shrink(AmxGroup& group, uint32_t rows, const float* decay, int64_t tiles) {
  for (; rows; rows &= rows - 1) {
    const int row = __builtin_ctz(rows);
    const __m512 share = _mm512_set1_ps(decay[row]);
    for (int64_t t = 0; t < tiles; ++t) {
      float* at = group.mixed + t * 256 + row * 16;
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), share));
    }
  }
}

// Turns a block of scores into weights, and asks for what comes later on the way.
template <bool kHidden, bool kScaled, bool kAsks>
inline void weigh(const Attention& call, AmxGroup& group, const Rows& rows, const float* score,
                  uint32_t* weight, AmxAhead& ahead) {
  const __m512 factor = _mm512_set1_ps(call.scale * kLog2E);
  const __m512 masked = _mm512_set1_ps(kMasked), high = _mm512_load_ps(group.high);
  const __m512i pairs = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
  for (int half = 0; half < 2; ++half) {
    __m512i packed[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t k = half * 32 + 2 * i;
      __m512 x = _mm512_load_ps(score + k * 16), y = _mm512_load_ps(score + k * 16 + 16);
      __m512 p = exp2_short(_mm512_fmsub_ps(x, factor, high));
      __m512 q = exp2_short(_mm512_fmsub_ps(y, factor, high));
      if (kHidden) {
        p = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, masked, _CMP_NEQ_UQ), p);
        q = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(y, masked, _CMP_NEQ_UQ), q);
      }
      even = _mm512_add_ps(even, p);
      odd = _mm512_add_ps(odd, q);
      if (kScaled) {
        p = _mm512_mul_ps(p, _mm512_set1_ps(rows.value_scale[k]));
        q = _mm512_mul_ps(q, _mm512_set1_ps(rows.value_scale[k + 1]));
      }
      packed[i] = _mm512_permutexvar_epi16(pairs, (__m512i)_mm512_cvtne2ps_pbh(q, p));
      if constexpr (kAsks) ahead.take(kAskedOnTheWay / 2);
    }
    turn(packed);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(weight + half * 256 + i * 16, packed[i]);
  }
  even = _mm512_add_ps(even, odd);
  _mm512_store_ps(group.total, _mm512_add_ps(_mm512_load_ps(group.total), even));
}

// Mixes the values of the blocks [from, to) of a turn.
inline void mix_one(AmxGroup& group, AmxScratch& s, int64_t from, int64_t to, int64_t tiles) {
  settle();
  for (int64_t t = 0; t < tiles; t += 2) {
    float* mixed = group.mixed + t * 256;
    _tile_loadd(0, mixed, 64);
    _tile_loadd(1, mixed + 256, 64);
    for (int64_t b = from; b < to; ++b) {
      const uint16_t* value = s.blocks[b].value + t * 1024;
      const uint32_t* weight = s.weight[b][0];
      _tile_loadd(4, weight, 64);
      _tile_loadd(6, value, 64);
      _tile_dpbf16ps(0, 4, 6);
      s.ahead.take(kAskedOnTheWay);
      _tile_loadd(7, value + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
      s.ahead.take(kAskedOnTheWay);
      _tile_loadd(5, weight + 256, 64);
      _tile_loadd(6, value + 512, 64);
      _tile_dpbf16ps(0, 5, 6);
      s.ahead.take(kAskedOnTheWay);
      _tile_loadd(7, value + 1536, 64);
      _tile_dpbf16ps(1, 5, 7);
      s.ahead.take(kAskedOnTheWay);
    }
    _tile_stored(0, mixed, 64);
    _tile_stored(1, mixed + 256, 64);
  }
}

inline void mix_two(AmxGroup& group, AmxGroup& other, const AmxScratch& s, int64_t from,
                    int64_t to, int64_t tiles) {
  settle();
  for (int64_t t = 0; t < tiles; t += 2) {
    float *mixed = group.mixed + t * 256, *mixed_too = other.mixed + t * 256;
    _tile_loadd(0, mixed, 64);
    _tile_loadd(1, mixed + 256, 64);
    _tile_loadd(2, mixed_too, 64);
    _tile_loadd(3, mixed_too + 256, 64);
    for (int64_t half = 2 * from; half < 2 * to; ++half) {
      const uint16_t* value = s.blocks[half / 2].value + t * 1024 + half % 2 * 512;
      const uint32_t* weight = s.weight[half / 2][0] + half % 2 * 256;
      _tile_loadd(6, value, 64);
      _tile_loadd(4, weight, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, weight + 512, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, value + 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, mixed, 64);
    _tile_stored(1, mixed + 256, 64);
    _tile_stored(2, mixed_too, 64);
    _tile_stored(3, mixed_too + 256, 64);
  }
}

// Asks for the queries of 16 rows, which lie too far apart for the processor to guess them.
inline void ask_queries(const Attention& call, const Tile& tile, int64_t head, int64_t row) {
  for (int64_t r = row; r < std::min(row + kAmxRows, tile.rows); ++r) {
    const uint16_t* from = static_cast<const uint16_t*>(call.query) + place(call, tile, head, r);
    for (int64_t d = 0; d < call.head_dim; d += kAmxDepth) _mm_prefetch(from + d, _MM_HINT_T0);
  }
}

// Packs the queries of 16 rows, and notes what they see.
inline void start_group(const Attention& call, const Tile& tile, int64_t head, int64_t row,
                        AmxGroup& group) {
  const int64_t rows = std::min(kAmxRows, tile.rows - row), chunks = chunks_of(call);
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t left = call.head_dim - c * kAmxDepth;
    const __mmask32 mask = left >= 32 ? ~0u : (1u << left) - 1;
    __m512i x[16];
    for (int64_t r = 0; r < kAmxRows; ++r) {
      const uint16_t* from = static_cast<const uint16_t*>(call.query);
      from += place(call, tile, head, row + (r < rows ? r : 0)) + c * kAmxDepth;
      x[r] = r < rows ? _mm512_maskz_loadu_epi16(mask, from) : _mm512_setzero_si512();
    }
    turn(x);
    for (int i = 0; i < 16; ++i) _mm512_store_si512(group.query + c * 512 + i * 32, x[i]);
  }
  for (int64_t r = 0; r < kAmxRows; ++r) {
    Visible seen = visible(call, tile, row + std::min(r, rows - 1));
    group.first[r] = static_cast<int32_t>(seen.first);
    group.last[r] = static_cast<int32_t>(seen.last);
  }
  group.from = group.first[0];
  group.all_from = group.first[15];
  group.all_to = group.last[0] + 1;
  group.to = group.last[15] + 1;
  for (int i = 0; i < 16; ++i) group.high[i] = kMasked, group.total[i] = 0;
  std::memset(group.mixed, 0, chunks * 2 * 256 * sizeof(float));
}

// What one group or two do in a turn that starts at key `first`: its blocks [from, to).
struct AmxTurn {
  AmxGroup* group[2];
  int64_t first, from, to;
  int groups() const { return group[1] ? 2 : 1; }
};

// Mixes what was weighed of a turn up to block `to`.
inline void mix(const Attention& call, const AmxTurn& turn, int64_t from, int64_t to,
                AmxScratch& s) {
  if (from == to) return;
  if (turn.group[1]) {
    mix_two(*turn.group[0], *turn.group[1], s, from, to, 2 * chunks_of(call));
  } else {
    mix_one(*turn.group[0], s, from, to, 2 * chunks_of(call));
  }
}

inline void score(const Attention& call, const AmxTurn& turn, int64_t b,
                  AmxScores& to, AmxScratch& s) {
  if (turn.group[1]) {
    score_two(turn.group[0]->query, turn.group[1]->query, s.blocks[b], to, chunks_of(call));
  } else {
    score_one(turn.group[0]->query, packed_keys(s.blocks[b]), to, chunks_of(call), s.ahead);
  }
}

// Weighs block `b` for one group, which asks for later keys on the way, or for two.
template <bool kHidden, bool kScaled>
inline void weigh_groups(const Attention& call, const AmxTurn& turn, int64_t b, AmxScores& score,
                         AmxScratch& s) {
  const auto run = turn.group[1] ? weigh<kHidden, kScaled, false> : weigh<kHidden, kScaled, true>;
  for (int i = 0; i < turn.groups(); ++i)
    run(call, *turn.group[i], s.blocks[b].rows, score[i], s.weight[b][i], s.ahead);
}

// Makes weights of the scores of block `b`.  `pending` is the first block that is not mixed yet.
inline void weigh_block(const Attention& call, const AmxTurn& turn, int64_t b, int64_t& pending,
                        AmxScores& score, AmxScratch& s) {
  const int64_t first = turn.first + b * kBlock;
  const Rows& rows = s.blocks[b].rows;
  alignas(64) float decay[2][16];
  __mmask16 grown[2] = {};
  bool hidden = false;
  for (int i = 0; i < turn.groups(); ++i) {
    AmxGroup& group = *turn.group[i];
    const bool hide = group.all_from > first || group.all_to < first + kBlock;
    if (hide || call.scales || call.soft_cap > 0) adjust(call, group, first, hide, rows, score[i]);
    grown[i] = raise(call, group, score[i], decay[i]);
    hidden |= hide;
  }
  if (grown[0] | grown[1]) {
    mix(call, turn, pending, b, s);
    pending = b;
    for (int i = 0; i < turn.groups(); ++i)
      shrink(*turn.group[i], grown[i], decay[i], 2 * chunks_of(call));
  }
  if (call.scales) {
    weigh_groups<true, true>(call, turn, b, score, s);
  } else if (hidden) {
    weigh_groups<true, false>(call, turn, b, score, s);
  } else {
    weigh_groups<false, false>(call, turn, b, score, s);
  }
}

// All pairs of groups take their turn at the packed blocks.  Scores of the next block are begun
// before those of this one are weighed, so that AMX and vectors work at the same time.
inline void take_turn(const Attention& call, int64_t first, int64_t count, AmxGroup* groups,
                      int64_t num_groups, AmxScratch& s) {
  auto turn_of = [&](int64_t g) {
    AmxTurn turn = {{nullptr, nullptr}, first, 0, 0};
    if (g >= num_groups) return turn;
    turn.group[0] = &groups[g];
    turn.group[1] = g + 1 < num_groups ? &groups[g + 1] : nullptr;
    const AmxGroup& last = groups[std::min(g + 1, num_groups - 1)];
    turn.from = std::clamp<int64_t>((groups[g].from - first) / kBlock, 0, count);
    turn.to = std::clamp<int64_t>((last.to - first + kBlock - 1) / kBlock, 0, count);
    return turn;
  };
  int64_t g = -2, which = 0;
  AmxTurn next;
  auto find = [&] {
    do next = turn_of(g += 2);
    while (next.group[0] && next.from >= next.to);
    return next.group[0] != nullptr;
  };
  if (!find()) return;
  score(call, next, next.from, s.scores[which], s);
  while (next.group[0]) {
    const AmxTurn turn = next;
    int64_t pending = turn.from;
    for (int64_t b = turn.from; b < turn.to; ++b, which ^= 1) {
      if (b + 1 < turn.to) {
        score(call, turn, b + 1, s.scores[which ^ 1], s);
      } else if (find()) {
        score(call, next, next.from, s.scores[which ^ 1], s);
      }
      weigh_block(call, turn, b, pending, s.scores[which], s);
    }
    mix(call, turn, pending, turn.to, s);
  }
}

// A group that has its keys for itself takes them as they lie: packing them would take longer than
// all that is done with them.
template <Stored kStored>
inline void take_block(const Attention& call, AmxGroup& group, int64_t first, AmxScratch& s) {
  AmxBlock& block = s.blocks[0];
  if (reads_pages(call)) {
    const AmxKeys keys = keys_in_pages(call, block.rows);
    score_one(group.query, keys, s.scores[0], chunks_of(call), s.ahead);
    pack_block<kStored, false>(call, block, s.ahead, kAskedOnTheWay / 2);
  } else {
    pack_block<kStored, true>(call, block, s.ahead, kAskedOnTheWay / 2);
    score_one(group.query, packed_keys(block), s.scores[0], chunks_of(call), s.ahead);
  }
  const AmxTurn turn{{&group, nullptr}, first, 0, 1};
  int64_t pending = 0;
  weigh_block(call, turn, 0, pending, s.scores[0], s);
  mix(call, turn, pending, 1, s);
}

// Walks over all keys, and in each turn over the KV heads, which lie one behind the other in a page.
template <Stored kStored>
inline void amx_blocks(const Attention& call, const Tile& tile, int64_t begin, int64_t end,
                       AmxScratch& s, AmxGroup* groups) {
  const int64_t of_head = (tile.rows + kAmxRows - 1) / kAmxRows;
  const int64_t start = begin / kBlock * kBlock;
  const int64_t blocks = of_head > 1 ? kTurn : 1, keys = blocks * kBlock;
  const int64_t turns = (end - start + keys - 1) / keys * tile.heads;
  auto find = [&](int64_t at, int64_t b, Rows& rows) {
    locate(call, tile, at % tile.heads, start + at / tile.heads * keys + b * kBlock, end, rows);
  };
  for (int64_t at = 0; at < turns; ++at) {
    const int64_t first = start + at / tile.heads * keys;
    const int64_t count = std::min(blocks, (end - first + kBlock - 1) / kBlock);
    for (int64_t b = 0; b < count; ++b) {
      AmxBlock& block = s.blocks[b];
      find(at, b, block.rows);
      s.ahead = {};
      if (at + 1 < turns) {
        find(at + 1, b, s.next);
        s.ahead = ahead_of(call, s.next);
      }
      if (of_head > 1) {
        pack_block<kStored, true>(call, block, s.ahead, kBlock);
      } else {
        take_block<kStored>(call, groups[at % tile.heads], first, s);
      }
    }
    if (of_head > 1)
      take_turn(call, first, count, groups + at % tile.heads * of_head, of_head, s);
  }
}

// Writes high, total and mixed of a group's rows, to be added up with other segments.
inline void leave_group(const Attention& call, const AmxGroup& group, int64_t rows, float* to,
                        int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, to += stride) {
    to[0] = group.high[r];
    to[1] = group.total[r];
    for (int64_t d = 0; d < call.head_dim; d += 16) {
      const __mmask16 mask = call.head_dim - d >= 16 ? 0xffff : (1u << (call.head_dim - d)) - 1;
      _mm512_mask_storeu_ps(to + 2 + d, mask, _mm512_load_ps(group.mixed + d * 16 + r * 16));
    }
  }
}

// Writes the results of a group's rows, which have no other segment, as `finish` does.
inline void finish_group(const Attention& call, const Tile& tile, int64_t head, int64_t first,
                         int64_t rows, const AmxGroup& group) {
  for (int64_t r = 0; r < rows; ++r) {
    const Share share = share_of(call, tile, head, first + r, group.high[r], group.total[r]);
    const __m512 old = _mm512_set1_ps(share.old), by = _mm512_set1_ps(share.by);
    uint16_t* to = static_cast<uint16_t*>(call.out) + place(call, tile, head, first + r);
    for (int64_t d = 0; d < call.head_dim; d += 16) {
      const __mmask16 mask = call.head_dim - d >= 16 ? 0xffff : (1u << (call.head_dim - d)) - 1;
      __m512 x = _mm512_mul_ps(_mm512_load_ps(group.mixed + d * 16 + r * 16), old);
      __m256i halves = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(x, by));
      _mm256_mask_storeu_epi16(to + d, mask, halves);
    }
  }
}

// Walks over the keys [begin, end) of a segment for all rows of a tile.  `result` gets, for each
// row of each KV head, high, total and mixed[head_dim], `stride` floats apart; without it the
// segment is all that the rows see, and they are finished.
inline void amx_segment(const Attention& call, const Tile& tile, int64_t begin, int64_t end,
                        float* memory, float* result, int64_t stride) {
  const int64_t of_head = (tile.rows + kAmxRows - 1) / kAmxRows, chunks = chunks_of(call);
  const int64_t num_groups = tile.heads * of_head;
  AmxScratch& s = *reinterpret_cast<AmxScratch*>(memory);
  AmxGroup* groups = reinterpret_cast<AmxGroup*>(&s + 1);
  float* mixed = reinterpret_cast<float*>(groups + num_groups);
  uint16_t* query = reinterpret_cast<uint16_t*>(mixed + num_groups * chunks * 512);
  for (int64_t g = 0; g < num_groups; ++g) {
    groups[g].query = query + g * chunks * 512;
    groups[g].mixed = mixed + g * chunks * 512;
    if (int64_t next = g + 1; next < num_groups)
      ask_queries(call, tile, next / of_head, next % of_head * kAmxRows);
    start_group(call, tile, g / of_head, g % of_head * kAmxRows, groups[g]);
  }
  _tile_loadconfig(&kTileConfig);
  if (call.stored == Stored::kBfloat16) {
    amx_blocks<Stored::kBfloat16>(call, tile, begin, end, s, groups);
  } else if (call.stored == Stored::kInt8) {
    amx_blocks<Stored::kInt8>(call, tile, begin, end, s, groups);
  } else {
    amx_blocks<Stored::kFloat8>(call, tile, begin, end, s, groups);
  }
  _tile_release();
  for (int64_t g = 0; g < num_groups; ++g) {
    const int64_t head = g / of_head, first = g % of_head * kAmxRows;
    const int64_t rows = std::min(kAmxRows, tile.rows - first);
    if (!result) {
      finish_group(call, tile, head, first, rows, groups[g]);
    } else {
      leave_group(call, groups[g], rows, result + (head * tile.rows + first) * stride, stride);
    }
  }
}

}  // namespace rtp::paged
#endif
