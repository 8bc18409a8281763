// Cuts a call of paged attention into tiles, walks each over its segments, and joins segments.
#include "attention.h"

#include <algorithm>
#include <cstring>

#include "attention_amx.h"
#include "attention_finish.h"
#include "attention_float.h"

namespace rtp::paged {
namespace {

int64_t segments_of(const Tile& tile) {
  return (tile.end - 1) / kSegment - tile.begin / kSegment + 1;
}

float* floats_of(Scratch& scratch, int64_t count) {
  return reinterpret_cast<float*>(scratch.get(count * 4));
}

// Adds the segment of a row to what its earlier segments left.
void add_segment(float* whole, const float* segment, int64_t dim) {
  float high = std::max(whole[0], segment[0]);
  float old = exp2_of(whole[0] - high), fresh = exp2_of(segment[0] - high);
  whole[0] = high;
  whole[1] = whole[1] * old + segment[1] * fresh;
  for (int64_t d = 0; d < dim; ++d) whole[2 + d] = whole[2 + d] * old + segment[2 + d] * fresh;
}

void finish(const Attention& call, const Tile& tile, int64_t result, const float* whole) {
  const int64_t head = result / tile.rows, row = result % tile.rows;
  const Share share = share_of(call, tile, head, row, whole[0], whole[1]);
  int64_t to = place(call, tile, head, row);
  for (int64_t d = 0; d < call.head_dim; ++d) {
    const float number = whole[2 + d] * share.old * share.by;
    if (call.bfloat16) {
      static_cast<uint16_t*>(call.out)[to + d] = to_bf16(number);
    } else {
      static_cast<float*>(call.out)[to + d] = number;
    }
  }
}

// Sets the rows of tokens that belong to no sequence to zero.
void clear_padding(const Attention& call) {
  std::vector<char> taken(call.tokens, 0);
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t start = std::clamp<int64_t>(call.query_start[s], 0, call.tokens);
    const int64_t stop = std::clamp<int64_t>(start + call.query_count[s], start, call.tokens);
    std::fill(taken.begin() + start, taken.begin() + stop, 1);
  }
  const int64_t bytes = call.heads * call.head_dim * (call.bfloat16 ? 2 : 4);
  for (int64_t token = 0; token < call.tokens; ++token)
    if (!taken[token]) std::memset(static_cast<char*>(call.out) + token * bytes, 0, bytes);
}

bool uses_amx([[maybe_unused]] const Attention& call) {
#if defined(RTP_ATTENTION_AMX)
  return call.bfloat16 && call.stored != Stored::kFloat32;
#else
  return false;
#endif
}

// Without a `result`, which AMX alone allows, the segment is the whole row and is finished at once.
void walk_segment(const Attention& call, const Tile& tile, int64_t begin, int64_t end,
                  float* result, int64_t stride) {
  thread_local Scratch scratch;
#if defined(RTP_ATTENTION_AMX)
  if (uses_amx(call)) {
    amx_segment(call, tile, begin, end, floats_of(scratch, amx_floats(call, tile)), result, stride);
    return;
  }
#endif
  const int64_t vectors = (tile.rows + kMaxColumns * kLanes - 1) / kLanes;
  const int64_t fixed = sizeof(FloatScratch) / sizeof(float);
  float* memory = floats_of(scratch, fixed + vectors * 2 * call.head_dim * kLanes);
  const auto walk = tile.rows <= kLanes ? float_segment<1> : float_segment<kMaxColumns>;
  for (int64_t head = 0; head < tile.heads; ++head)
    walk(call, tile, head, begin, end, *reinterpret_cast<FloatScratch*>(memory), memory + fixed,
         result + head * tile.rows * stride, stride);
}

// Lists the tiles of a sequence, each with `heads` KV heads and up to `rows` rows.
void add_tiles(const Attention& call, int64_t sequence, int64_t heads, int64_t rows,
               std::vector<Tile>& tiles) {
  const int64_t group = call.heads / call.kv_heads;
  const int64_t step = std::max<int64_t>(1, rows / group);  // tokens
  const int64_t start = std::max<int64_t>(0, call.query_start[sequence]);
  const int64_t stop = std::min(call.tokens, start + call.query_count[sequence]);
  for (int64_t first = start; first < stop; first += step) {
    const int64_t tokens = std::min(step, stop - first);
    const int64_t position = std::max<int64_t>(0, call.positions[start] + first - start);
    const int64_t begin = std::max<int64_t>(0, position - call.window + 1);
    for (int64_t head = 0; head < call.kv_heads; head += heads)
      tiles.push_back({sequence, head, std::min(heads, call.kv_heads - head), first, position,
                       tokens * group, begin, position + tokens, -1});
  }
}

// Rows of a tile: many, so that a block of keys serves all of them, unless threads would have
// nothing to do.
int64_t tile_rows(const Attention& call, int64_t enough) {
  int64_t all = 0;
  for (int64_t s = 0; s < call.sequences; ++s) all += std::max(0, call.query_count[s]) * call.heads;
  int64_t rows = uses_amx(call) ? kTileRows : kTileRows / 2;
  while (rows > kFewRows && all / rows < enough) rows /= 2;
  return rows;
}

// Cuts tiles into their segments, so that many threads may share them.
void cut(Plan& plan) {
  std::vector<Tile> pieces;
  int64_t rows = 0;
  for (const Tile& tile : plan.tiles) {
    if (segments_of(tile) == 1) {
      pieces.push_back(tile);
      continue;
    }
    plan.joins.push_back({tile, rows, segments_of(tile)});
    for (int64_t at = tile.begin; at < tile.end; at = (at / kSegment + 1) * kSegment) {
      Tile piece = tile;
      piece.begin = at;
      piece.end = std::min(tile.end, (at / kSegment + 1) * kSegment);
      piece.part = rows;
      rows += tile.heads * tile.rows;
      pieces.push_back(piece);
    }
  }
  plan.tiles.swap(pieces);
  plan.parts.reset(new float[rows * plan.stride]);
}

}  // namespace

Plan plan(const Attention& call, int64_t threads) {
  Plan plan;
  plan.stride = (call.head_dim + 2 + 15) / 16 * 16;
  clear_padding(call);
  const int64_t group = call.heads / call.kv_heads, enough = threads > 1 ? 2 * threads : 1;
  int64_t few = 0, pieces = 0;  // sequences of few rows, and their segments
  for (int64_t s = 0; s < call.sequences; ++s) {
    if (call.query_count[s] < 1 || call.query_count[s] * group > kFewRows) continue;
    const int64_t last = call.positions[std::clamp<int64_t>(call.query_start[s], 0,
                                                            call.tokens - 1)];
    few += 1;
    pieces += std::min(last, call.window) / kSegment + 1;
  }
  // All KV heads in one tile unless threads would have nothing to do; then rather fewer keys each.
  int64_t heads = call.kv_heads;
  if (few < enough && pieces < enough) heads = std::max<int64_t>(1, heads * few / enough);
  const int64_t rows = tile_rows(call, enough);
  for (int64_t s = 0; s < call.sequences; ++s) {
    if (call.query_count[s] < 1) continue;
    add_tiles(call, s, call.query_count[s] * group > kFewRows ? 1 : heads, rows, plan.tiles);
  }
  if (static_cast<int64_t>(plan.tiles.size()) < enough) cut(plan);
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(), [](const Tile& a, const Tile& b) {
    auto cost = [](const Tile& t) {
      return t.heads * ((t.rows + 15) / 16) * (t.end - t.begin);
    };
    return cost(a) > cost(b);
  });
  return plan;
}

void attend(const Attention& call, const Plan& plan, int64_t item) {
  thread_local Scratch scratch;
  const Tile& tile = plan.tiles[item];
  const int64_t stride = plan.stride, rows = tile.heads * tile.rows;
  if (tile.part >= 0) {
    walk_segment(call, tile, tile.begin, tile.end, plan.parts.get() + tile.part * stride, stride);
    return;
  }
  if (uses_amx(call) && segments_of(tile) == 1) {
    walk_segment(call, tile, tile.begin, tile.end, nullptr, 0);
    return;
  }
  float* whole = floats_of(scratch, 2 * rows * stride);
  float* segment = whole + rows * stride;
  for (int64_t at = tile.begin; at < tile.end; at = (at / kSegment + 1) * kSegment) {
    const int64_t end = std::min(tile.end, (at / kSegment + 1) * kSegment);
    walk_segment(call, tile, at, end, at == tile.begin ? whole : segment, stride);
    if (at == tile.begin) continue;
    for (int64_t i = 0; i < rows; ++i)
      add_segment(whole + i * stride, segment + i * stride, call.head_dim);
  }
  for (int64_t i = 0; i < rows; ++i) finish(call, tile, i, whole + i * stride);
}

void join(const Attention& call, const Plan& plan, int64_t item) {
  const Plan::Join& one = plan.joins[item];
  const int64_t rows = one.whole.heads * one.whole.rows;
  for (int64_t i = 0; i < rows; ++i) {
    float* whole = plan.parts.get() + (one.first_part + i) * plan.stride;
    for (int64_t part = 1; part < one.parts; ++part)
      add_segment(whole, whole + part * rows * plan.stride, call.head_dim);
    finish(call, one.whole, i, whole);
  }
}

}  // namespace rtp::paged
