// Cuts a call of paged attention into tiles, walks each over its segments, and joins segments.
#include "attention.h"

#include <algorithm>
#include <cstdlib>

#include "attention_amx.h"
#include "attention_float.h"

namespace rtp {
namespace {

int64_t segments_of(const Tile& tile) {
  return (tile.end - 1) / kSegment - tile.begin / kSegment + 1;
}

// Memory of one thread, kept between calls.
struct Workspace {
  ~Workspace() { std::free(data); }
  float* of(int64_t floats) {
    if (floats > size) {
      std::free(data);
      size_t bytes = (static_cast<size_t>(floats) * sizeof(float) + 4095) / 4096 * 4096;
      data = static_cast<float*>(std::aligned_alloc(4096, bytes));
      size = static_cast<int64_t>(bytes / sizeof(float));
    }
    return data;
  }
  float* data = nullptr;
  int64_t size = 0;
};

int64_t stride_of(const Attention& call) { return (call.head_dim + 2 + 15) / 16 * 16; }

// Adds the segment of a row to what its earlier segments left.
void add_segment(float* whole, const float* segment, int64_t dim) {
  float high = std::max(whole[0], segment[0]);
  float old = exp2_of(whole[0] - high), fresh = exp2_of(segment[0] - high);
  whole[0] = high;
  whole[1] = whole[1] * old + segment[1] * fresh;
  for (int64_t d = 0; d < dim; ++d) whole[2 + d] = whole[2 + d] * old + segment[2 + d] * fresh;
}

// Divides a row by its total, to which a sink adds the weight of a key without a value.
void finish(const Attention& call, const Tile& tile, int64_t row, float* whole) {
  int64_t group = call.heads / call.kv_heads;
  if (call.sinks) {
    float sink = call.sinks[tile.kv_head * group + row % group] * kLog2E;
    float high = std::max(whole[0], sink);
    float old = exp2_of(whole[0] - high);
    whole[1] = whole[1] * old + exp2_of(sink - high);
    for (int64_t d = 0; d < call.head_dim; ++d) whole[2 + d] *= old;
  }
  float by = whole[1] > 0 ? 1.0f / whole[1] : 0.0f;
  int64_t to = place(call, tile, row);
  for (int64_t d = 0; d < call.head_dim; ++d) {
    if (call.bfloat16) {
      static_cast<uint16_t*>(call.out)[to + d] = narrow(whole[2 + d] * by);
    } else {
      static_cast<float*>(call.out)[to + d] = whole[2 + d] * by;
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

void walk_segment(const Attention& call, const Tile& tile, int64_t begin, int64_t end,
                  float* result, int64_t stride) {
  thread_local Workspace workspace;
#if defined(RTP_ATTENTION_AMX)
  if (call.bfloat16 && call.stored != Stored::kFloat32) {
    amx_segment(call, tile, begin, end, workspace.of(amx_floats(call, tile)), result, stride);
    return;
  }
#endif
  const int64_t groups = (tile.rows + kGroupRows - 1) / kGroupRows;
  const int64_t fixed = sizeof(FloatScratch) / sizeof(float);
  float* memory = workspace.of(fixed + groups * 2 * call.head_dim * kGroupRows);
  float_segment(call, tile, begin, end, *reinterpret_cast<FloatScratch*>(memory), memory + fixed,
                result, stride);
}

}  // namespace

Plan plan(const Attention& call, int64_t threads) {
  Plan plan;
  clear_padding(call);
  const int64_t group = call.heads / call.kv_heads;
  const int64_t step = std::max<int64_t>(1, kTileRows / group);  // tokens
  for (int64_t s = 0; s < call.sequences; ++s) {
    const int64_t start = std::max<int64_t>(0, call.query_start[s]);
    const int64_t stop = std::min(call.tokens, start + call.query_count[s]);
    for (int64_t first = start; first < stop; first += step) {
      const int64_t tokens = std::min(step, stop - first);
      const int64_t position = std::max<int64_t>(0, call.positions[start] + first - start);
      const int64_t begin = std::max<int64_t>(0, position - call.window + 1);
      for (int64_t head = 0; head < call.kv_heads; ++head)
        plan.tiles.push_back(
            {s, head, first, position, tokens * group, begin, position + tokens, -1});
    }
  }
  plan.part_stride = stride_of(call);
  if (static_cast<int64_t>(plan.tiles.size()) < 4 * threads && threads > 1) {
    std::vector<Tile> pieces;
    int64_t parts = 0;  // rows
    for (const Tile& tile : plan.tiles) {
      if (segments_of(tile) == 1) {
        pieces.push_back(tile);
        continue;
      }
      plan.joins.push_back({tile, parts, segments_of(tile)});
      for (int64_t at = tile.begin; at < tile.end; at = (at / kSegment + 1) * kSegment) {
        Tile piece = tile;
        piece.begin = at;
        piece.end = std::min(tile.end, (at / kSegment + 1) * kSegment);
        piece.part = parts;
        parts += tile.rows;
        pieces.push_back(piece);
      }
    }
    plan.tiles.swap(pieces);
    plan.parts.reset(new float[parts * plan.part_stride]);
  }
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(), [](const Tile& a, const Tile& b) {
    auto cost = [](const Tile& t) { return (t.rows + 15) / 16 * (t.end - t.begin); };
    return cost(a) > cost(b);
  });
  return plan;
}

void attend(const Attention& call, const Plan& plan, int64_t item) {
  thread_local Workspace workspace;
  const Tile& tile = plan.tiles[item];
  const int64_t stride = plan.part_stride;
  if (tile.part >= 0) {
    walk_segment(call, tile, tile.begin, tile.end, plan.parts.get() + tile.part * stride, stride);
    return;
  }
  float* whole = workspace.of(2 * tile.rows * stride);
  float* segment = whole + tile.rows * stride;
  for (int64_t at = tile.begin; at < tile.end; at = (at / kSegment + 1) * kSegment) {
    const int64_t end = std::min(tile.end, (at / kSegment + 1) * kSegment);
    walk_segment(call, tile, at, end, at == tile.begin ? whole : segment, stride);
    if (at == tile.begin) continue;
    for (int64_t row = 0; row < tile.rows; ++row)
      add_segment(whole + row * stride, segment + row * stride, call.head_dim);
  }
  for (int64_t row = 0; row < tile.rows; ++row) finish(call, tile, row, whole + row * stride);
}

void join(const Attention& call, const Plan& plan, int64_t item) {
  const Plan::Join& one = plan.joins[item];
  const int64_t stride = plan.part_stride;
  for (int64_t row = 0; row < one.whole.rows; ++row) {
    float* whole = plan.parts.get() + (one.first_part + row) * stride;
    for (int64_t part = 1; part < one.parts; ++part)
      add_segment(whole, whole + part * one.whole.rows * stride, call.head_dim);
    finish(call, one.whole, row, whole);
  }
}

}  // namespace rtp
