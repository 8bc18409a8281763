// Where the keys and values of a block lie in the pages.
#pragma once
#include <algorithm>

#include "attention.h"
#include "attention_vector.h"

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
