// Where the keys and values of a block lie in the pages, and how stored numbers become float32.
#pragma once
#include <algorithm>

#include "attention.h"
#include "attention_vector.h"
#include "numbers.h"

namespace rtp::paged {

constexpr float kLog2E = 1.44269504088896341f;

alignas(64) constexpr char kZeros[kMaxHeadDim * 4] = {};

// The keys of a block: their rows in the pages, and their scales if there are any.  A key that no
// row of the tile sees is a row of zeros: its page may be recycled and hold anything.
struct Rows {
  const char* key[kBlock];
  const char* value[kBlock];
  float key_scale[kBlock], value_scale[kBlock];
};

inline int64_t bytes_of(Stored stored) {
  return stored == Stored::kFloat32 ? 4 : stored == Stored::kBfloat16 ? 2 : 1;
}

// Finds the keys [block, block + kBlock) of a tile's sequence and of one of its KV heads; those
// from `tile.begin` to `end` are live.  A page id that does not exist is read as the last page.
inline void locate(const Attention& call, const Tile& tile, int64_t head, int64_t block,
                   int64_t end, Rows& rows) {
  const int64_t bytes = call.head_dim * bytes_of(call.stored);
  const int64_t half = call.kv_heads * call.page_size;  // rows from a key to its value
  const int64_t from = std::max<int64_t>(0, tile.begin - block);
  const int64_t count = std::min(kBlock, end - block);
  for (int64_t i = 0; i < kBlock; ++i) {
    if (i >= from && i < count) continue;
    rows.key[i] = rows.value[i] = kZeros;
    rows.key_scale[i] = rows.value_scale[i] = 0;
  }
  int64_t index = (block + from) / call.page_size, offset = (block + from) % call.page_size;
  for (int64_t i = from; i < count; ++index, offset = 0) {
    int64_t page = index < call.width ? call.page_table[tile.sequence * call.width + index] : 0;
    page = std::clamp<int64_t>(page, 0, call.num_pages - 1);
    int64_t row = (page * call.layers + call.layer) * 2 * call.kv_heads + tile.kv_head + head;
    row = row * call.page_size + offset;
    for (; offset < call.page_size && i < count; ++offset, ++i, ++row) {
      rows.key[i] = static_cast<const char*>(call.pages) + row * bytes;
      rows.value[i] = rows.key[i] + half * bytes;
      if (call.scales) {
        rows.key_scale[i] = call.scales[row];
        rows.value_scale[i] = call.scales[row + half];
      }
    }
  }
}

// float8_e4m3fn as bfloat16 bits, which hold every one of its numbers.
struct Float8Table {
  uint16_t bits[256];
  constexpr Float8Table() : bits() {
    for (int code = 0; code < 256; ++code) {
      int exponent = (code >> 3) & 15, mantissa = code & 7, result = 0;
      if ((code & 0x7f) == 0x7f) {
        result = 0x7fc0;
      } else if (exponent) {
        result = (exponent + 120) << 7 | mantissa << 4;
      } else if (mantissa) {  // mantissa * 2^-9
        int shift = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;
        result = (118 + shift) << 7 | ((mantissa << (7 - shift)) & 0x7f);
      }
      bits[code] = static_cast<uint16_t>(result | (code & 0x80) << 8);
    }
  }
};
constexpr Float8Table kFloat8;

inline void widen_row(Stored stored, const char* from, int64_t count, float* to) {
  if (stored == Stored::kFloat32) {
    std::memcpy(to, from, count * 4);
  } else if (stored == Stored::kBfloat16) {
    widen(from, true, count, to);
  } else if (stored == Stored::kInt8) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<signed char>(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i)
      to[i] = from_bf16(kFloat8.bits[static_cast<unsigned char>(from[i])]);
  }
}

// The first and last key that row `row` of a tile sees.
struct Visible {
  int64_t first, last;
};
inline Visible visible(const Attention& call, const Tile& tile, int64_t row) {
  int64_t position = tile.position + row / (call.heads / call.kv_heads);
  int64_t first = position - call.window + 1;
  return {first < 0 ? 0 : first, position};
}

// Which query head row `row` of KV head `head` of a tile is, and where it lies in the query and in
// the result, in numbers.
inline int64_t query_head(const Attention& call, const Tile& tile, int64_t head, int64_t row) {
  int64_t group = call.heads / call.kv_heads;
  return (tile.kv_head + head) * group + row % group;
}
inline int64_t place(const Attention& call, const Tile& tile, int64_t head, int64_t row) {
  int64_t token = tile.first_token + row / (call.heads / call.kv_heads);
  return (token * call.heads + query_head(call, tile, head, row)) * call.head_dim;
}

}  // namespace rtp::paged
