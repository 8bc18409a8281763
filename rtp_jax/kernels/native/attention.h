// Paged attention on the CPU: what a call holds, and the pieces of work that it is cut into.
//
// A tile is up to `kTileRows` query rows of one sequence that share a KV head: row r is query head
// `r % group` of that KV head, at the token `first_token + r / group`.  If they are few, the tile
// has the same rows for the KV heads after it too, because a page holds its heads end to end, and
// long runs of memory are read faster.  A tile walks over its keys in blocks of 64 that start at
// multiples of 64, and starts its sums anew every `kSegment` keys:
//
//     segment:  (high, total, mixed)      high  = max of the scores,    total = sum of weights
//     result:   sum of mixed / sum of total, each times 2^(high - highest), in order
//
// What a row computes depends on its own sequence alone, to the bit: the keys of a row are cut at
// the same places whichever rows share its tile, a row masks what it does not see with exact zeros,
// and segments that other threads walked are added up in the same order.
//
// Source: Milakov & Gimelshein 2018 (arXiv:1805.02867), algorithm 3; Dao 2023 (arXiv:2307.08691).
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "stored.h"

namespace rtp::paged {

constexpr int64_t kBlock = 64;      // keys
constexpr int64_t kSegment = 2048;  // keys
constexpr int64_t kTileRows = 512;  // query rows that reuse a block of keys while it is in cache
constexpr int64_t kFewRows = 16;    // rows of a decoding token: reading keys costs more than they do
constexpr int64_t kMaxHeadDim = 256;
constexpr float kMasked = -1e30f;  // finite: a block without a visible key must not make NaN

// One call.  Shapes: query and out [tokens, heads, head_dim]; pages [num_pages, layers, 2, kv_heads,
// page_size, head_dim]; scales the same without the last axis, or null; sinks [heads], or null.
struct Attention {
  const void* query;
  void* out;
  const void* pages;
  const float* scales;
  const float* sinks;
  const int32_t* positions;    // [tokens]
  const int32_t* page_table;   // [sequences, width]
  const int32_t* query_start;  // [sequences]
  const int32_t* query_count;  // [sequences]
  int64_t tokens, heads, head_dim;
  int64_t num_pages, layers, kv_heads, page_size;
  int64_t sequences, width;
  int64_t layer, num_tokens, window;
  float scale, soft_cap;
  bool bfloat16;  // the query and the result, else float32
  Stored stored;
};

struct Tile {
  int64_t sequence, kv_head, heads;  // KV heads from `kv_head` on
  int64_t first_token, position;     // of row 0
  int64_t rows;                      // of each KV head
  int64_t begin, end;                // keys: row 0 sees the first, the last row the last
  int64_t part;  // row of `parts` where its only segment is left for `join`; -1 if it is complete
};

// The work of a call: tiles in the order in which they are started, the long ones first, and the
// tiles that were cut into segments for many threads, which are joined afterwards.
struct Plan {
  std::vector<Tile> tiles;
  struct Join {
    Tile whole;
    int64_t first_part, parts;
  };
  std::vector<Join> joins;
  int64_t stride;  // floats of a row of `parts`: high, total, mixed[head_dim]
  std::unique_ptr<float[]> parts;
};

Plan plan(const Attention& call, int64_t threads);
void attend(const Attention& call, const Plan& plan, int64_t item);  // tiles[item]
void join(const Attention& call, const Plan& plan, int64_t item);    // joins[item], after all tiles

}  // namespace rtp::paged
