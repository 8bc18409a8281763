// A segment of a tile in float32, for every level: lanes are query rows, numbers of K and V are
// broadcast, so nothing is transposed but the queries, and no sum runs across lanes.
#pragma once
#include <algorithm>

#include "attention_rows.h"

namespace rtp::paged {

// A group of rows is two vectors of them, or one where there are no more: reading a number of K or V
// and spreading it over a vector is half of the work.
constexpr int kMaxColumns = 2;
#if defined(__AVX512F__)
constexpr int kStrip = 8;  // keys or dimensions at a time: kStrip * columns sums in registers
#else
constexpr int kStrip = 4;
#endif

struct FloatScratch {
  float key[kBlock * kMaxHeadDim];
  float value[kBlock * kMaxHeadDim];
  float score[kBlock * kMaxColumns * kLanes];
};

// to[i][rows] += sum over k of from[i * step_i + k * step_k] * by[k][rows], for i in [0, Strip).
template <int kColumns, int Strip, bool kFromZero>
inline void multiply_strip(const float* from, int64_t step_i, int64_t step_k, int64_t depth,
                           const float* by, float* to) {
  constexpr int64_t kGroupRows = kColumns * kLanes;
  Floats sum[Strip][kColumns];
  for (int i = 0; i < Strip; ++i)
    for (int c = 0; c < kColumns; ++c)
      sum[i][c] = kFromZero ? Floats{} : load(to + i * kGroupRows + c * kLanes);
  for (int64_t k = 0; k < depth; ++k) {
    Floats row[kColumns];
    for (int c = 0; c < kColumns; ++c) row[c] = load(by + k * kGroupRows + c * kLanes);
    for (int i = 0; i < Strip; ++i)
      for (int c = 0; c < kColumns; ++c) sum[i][c] += from[i * step_i + k * step_k] * row[c];
  }
  for (int i = 0; i < Strip; ++i)
    for (int c = 0; c < kColumns; ++c) store(to + i * kGroupRows + c * kLanes, sum[i][c]);
}

template <int kColumns, bool kFromZero>
inline void multiply(int64_t rows, const float* from, int64_t step_i, int64_t step_k,
                     int64_t depth, const float* by, float* to) {
  constexpr int64_t kGroupRows = kColumns * kLanes;
  int64_t i = 0;
  for (; i + kStrip <= rows; i += kStrip)
    multiply_strip<kColumns, kStrip, kFromZero>(from + i * step_i, step_i, step_k, depth, by,
                                      to + i * kGroupRows);
  for (; i < rows; ++i)
    multiply_strip<kColumns, 1, kFromZero>(from + i * step_i, step_i, step_k, depth, by, to + i * kGroupRows);
}

// Turns the scores of one vector of rows into weights, and updates the running softmax of the rows.
// Returns the factor on what was summed before.
struct Softmax {
  Floats high = spread(kMasked), total = Floats{};

  Floats advance(const Attention& call, const Rows& rows, int64_t keys, Ints first, Ints last,
                 float* score, int64_t step) {
    const float factor = call.scale * kLog2E;
    Floats top = spread(kMasked);
    for (int64_t k = 0; k < keys; ++k) {
      Floats x = load(score + k * step) * factor;
      if (call.scales) x *= rows.key_scale[k];
      if (call.soft_cap > 0) {
        const float cap = call.soft_cap * kLog2E;
        x = cap * tanh_of(x / cap);
      }
      Ints at = Ints{} + static_cast<int32_t>(k);
      x = ((at >= first) & (at <= last)) ? x : spread(kMasked);
      store(score + k * step, x);
      top = larger(top, x);
    }
    Floats higher = larger(high, top), decay = exp2_of(high - higher), sum = Floats{};
    high = higher;
    for (int64_t k = 0; k < keys; ++k) {
      Floats x = load(score + k * step);
      Floats weight = x == spread(kMasked) ? Floats{} : exp2_of(x - higher);
      sum += weight;
      store(score + k * step, call.scales ? weight * rows.value_scale[k] : weight);
    }
    total = total * decay + sum;
    return decay;
  }
};

// Walks over the keys [begin, end) of a segment for all rows of one KV head of a tile.  `result` gets, for each
// row, high, total and mixed[head_dim], `stride` floats apart.
template <int kColumns>
inline void float_segment(const Attention& call, const Tile& tile, int64_t head, int64_t begin,
                          int64_t end, FloatScratch& scratch, float* query, float* result,
                          int64_t stride) {
  constexpr int64_t kGroupRows = kColumns * kLanes;
  const int64_t dim = call.head_dim;
  const int64_t groups = (tile.rows + kGroupRows - 1) / kGroupRows;
  // `query` holds, for each group, the queries [head_dim][rows] and the sums [head_dim][rows].
  const int64_t group_size = 2 * dim * kGroupRows;
  std::vector<Softmax> softmax(groups * kColumns);
  for (int64_t g = 0; g < groups; ++g) {
    std::memset(query + g * group_size, 0, group_size * sizeof(float));
    for (int64_t r = 0; r < kGroupRows && g * kGroupRows + r < tile.rows; ++r) {
      int64_t from = place(call, tile, head, g * kGroupRows + r);
      for (int64_t d = 0; d < dim; ++d)
        query[g * group_size + d * kGroupRows + r] =
            call.bfloat16 ? from_bf16(static_cast<const uint16_t*>(call.query)[from + d])
                          : static_cast<const float*>(call.query)[from + d];
    }
  }
  Rows rows;
  for (int64_t block = begin / kBlock * kBlock; block < end; block += kBlock) {
    const int64_t keys = std::min(kBlock, end - block);
    locate(call, tile, head, block, end, rows);
    for (int64_t k = 0; k < keys; ++k) {
      widen_row(call.stored, rows.key[k], dim, scratch.key + k * dim);
      widen_row(call.stored, rows.value[k], dim, scratch.value + k * dim);
    }
    for (int64_t g = 0; g < groups; ++g) {
      int64_t last_row = std::min(tile.rows, (g + 1) * kGroupRows) - 1;
      if (visible(call, tile, last_row).last < block) continue;
      if (visible(call, tile, g * kGroupRows).first >= block + kBlock) continue;
      float* mine = query + g * group_size;
      float* mixed = mine + dim * kGroupRows;
      multiply<kColumns, true>(keys, scratch.key, dim, 1, dim, mine, scratch.score);
      for (int c = 0; c < kColumns; ++c) {
        Ints first, last;
        for (int lane = 0; lane < kLanes; ++lane) {
          int64_t row = std::min(g * kGroupRows + c * kLanes + lane, tile.rows - 1);
          Visible seen = visible(call, tile, row);
          first[lane] = static_cast<int32_t>(std::clamp<int64_t>(seen.first - block, 0, kBlock));
          last[lane] = static_cast<int32_t>(std::clamp<int64_t>(seen.last - block, -1, kBlock));
        }
        Floats decay = softmax[g * kColumns + c].advance(call, rows, keys, first, last,
                                                         scratch.score + c * kLanes, kGroupRows);
        for (int64_t d = 0; d < dim; ++d) {
          float* at = mixed + d * kGroupRows + c * kLanes;
          store(at, load(at) * decay);
        }
      }
      multiply<kColumns, false>(dim, scratch.value, 1, dim, keys, scratch.score, mixed);
    }
  }
  for (int64_t row = 0; row < tile.rows; ++row) {
    int64_t g = row / kGroupRows, lane = row % kGroupRows;
    const Softmax& state = softmax[row / kLanes];
    float* to = result + row * stride;
    to[0] = state.high[row % kLanes];
    to[1] = state.total[row % kLanes];
    const float* mixed = query + g * group_size + dim * kGroupRows + lane;
    for (int64_t d = 0; d < dim; ++d) to[2 + d] = mixed[d * kGroupRows];
  }
}

}  // namespace rtp::paged
