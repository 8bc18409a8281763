// The order of a matrix product: which memory is walked when, and what is done with sums.
//
// An item is a few pairs of blocks times a chunk of rows.  With few rows, weights stream from memory
// once and nothing else matters.  With many, packed x stays in the second-level cache:
//
//     for each pass along `inner`       if one pass of x does not fit: sums are kept in memory
//       for each pair of blocks         decoded once into scratch, if the kind asks for it
//         for each two tiles of rows    32 x 32 sums in registers
#include "matmul.h"

#include <type_traits>

#include "matmul_expand.h"
#include "matmul_tile.h"
#include "numbers.h"

namespace rtp {
namespace {

constexpr int64_t kCachedX = 1 << 20;      // bytes of packed x that a core keeps at hand
constexpr int64_t kChunkTiles = 32;        // tiles of rows, if x does not fit
constexpr int64_t kItemBytes = 128 << 10;  // of weights: short enough to balance, long to stream
constexpr int64_t kPairsOfPass = 8;        // that share a pass of x
constexpr int64_t kZeroRows = 64;          // of an item that only writes zeros
constexpr int64_t kSmallTiles = 2;         // with so few, decoded weights should stay in the L1
constexpr int64_t kSmallPass = 8;

thread_local Scratch sums_scratch, decoded_scratch, packed_scratch, scales_scratch;

Kind kind_of(const Linear& call) {
  switch (call.scheme) {
    case Scheme::kFloat32: return Kind::kF32;
    case Scheme::kBfloat16:
    case Scheme::kInt8: return kHasBf16 && call.x.bfloat16 ? Kind::kBf16 : Kind::kF32;
    case Scheme::kInt8Dynamic: return kHasInt8 ? Kind::kU8 : Kind::kF32;
    default: return kHasInt8 ? Kind::kS8 : Kind::kF32;
  }
}

bool is_decoded(Scheme scheme, Kind kind) {
  if (scheme == Scheme::kFloat32 || (scheme == Scheme::kBfloat16 && kind == Kind::kBf16))
    return false;
  return kind != Kind::kU8;
}

int64_t pass_bytes(Scheme scheme) { return scheme == Scheme::kInt4 ? kTile + kLine : kTile; }

// exp(x) to a few units in the last place; halves of the range beyond float32 give 0 and infinity.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  float power = x * 1.44269504f;
  int32_t whole = rounded(power);
  float rest = x - static_cast<float>(whole) * 0.693145752f;
  rest -= static_cast<float>(whole) * 1.42860677e-6f;
  float series = 1.98756915e-4f;  // minimax on [-ln 2 / 2, ln 2 / 2]
  series = series * rest + 1.39819995e-3f;
  series = series * rest + 8.33345205e-3f;
  series = series * rest + 4.16657962e-2f;
  series = series * rest + 1.66666657e-1f;
  series = series * rest + 5.0e-1f;
  series = series * rest * rest + rest + 1.0f;
  int32_t bits = (whole + 127) << 23;
  float scale;
  memcpy(&scale, &bits, 4);
  return series * scale;
}

void store(const float* numbers, const Rows& to, int64_t at, int64_t count) {
  if (!to.bfloat16) {
    memcpy(static_cast<float*>(to.data) + at, numbers, static_cast<size_t>(count) * 4);
    return;
  }
  uint16_t halves[16];
  for (int i = 0; i < 16; ++i) halves[i] = to_bf16(numbers[i]);
  uint16_t* out = static_cast<uint16_t*>(to.data) + at;
  if (count == 16) memcpy(out, halves, 32);
  else memcpy(out, halves, static_cast<size_t>(count) * 2);
}

}  // namespace

Product::Product(const Linear& linear, int64_t threads) : call_(linear), kind_(kind_of(linear)) {
  int64_t weight_tiles = call_.scheme == Scheme::kInt4
                             ? call_.inner / kGroup
                             : divided_up(call_.inner, tile_inner(call_.scheme));
  expansion_ = expansion(call_.scheme, kind_);
  lines_ = weight_tiles * expansion_;
  tile_rows_ = call_.rows < 16 ? call_.rows : 16;
  tiles_ = divided_up(call_.rows, 16);
  zero_items_ = divided_up(call_.total - call_.rows, kZeroRows);
  pairs_ = 0;
  if (call_.epilogue == Epilogue::kSiluMul) {
    pairs_ = divided_up(call_.outer[0], kBlockRows);
  } else {
    for (int64_t i = 0; i < call_.weights; ++i)
      pairs_ += divided_up(call_.outer[i], 2 * kBlockRows);
  }
  bool decoded = is_decoded(call_.scheme, kind_);
  chunk_ = tiles_;
  pass_ = weight_tiles;
  group_ = kItemBytes / (2 * weight_tiles * pass_bytes(call_.scheme));
  if (tiles_ * lines_ * kTile > kCachedX && call_.scheme != Scheme::kInt4) {
    chunk_ = tiles_ < kChunkTiles ? tiles_ : kChunkTiles;
    int64_t passes = divided_up(chunk_ * lines_ * kTile, kCachedX);
    pass_ = divided_up(weight_tiles, passes);
    group_ = kPairsOfPass;
  } else if (tiles_ <= kSmallTiles && decoded) {
    pass_ = kSmallPass;
  }
  if (pass_ > weight_tiles) pass_ = weight_tiles;
  if (group_ > pairs_ / (4 * threads)) group_ = pairs_ / (4 * threads);
  if (group_ < 1) group_ = 1;
  groups_ = divided_up(pairs_, group_);
  chunks_ = chunk_ ? divided_up(tiles_, chunk_) : 0;
  packed_ = packed_scratch.get(tiles_ * lines_ * tile_rows_ * kLine);
  int64_t scales = call_.scheme == Scheme::kInt4           ? tiles_ * 16 * weight_tiles
                   : call_.scheme == Scheme::kInt8Dynamic ? tiles_ * 16
                                                           : 0;
  x_scales_ = reinterpret_cast<float*>(scales_scratch.get(scales * 8));
  x_sums_ = reinterpret_cast<int32_t*>(x_scales_ + scales);
}

Product::Pair Product::pair(int64_t index) const {
  int64_t bytes = block_bytes(call_.scheme, call_.inner);
  if (call_.epilogue == Epilogue::kSiluMul) {
    return {{0, 1}, {index, index}, 2,
            {call_.blocks[0] + index * bytes, call_.blocks[1] + index * bytes}};
  }
  int64_t weight = 0;
  for (int64_t pairs; index >= (pairs = divided_up(call_.outer[weight], 2 * kBlockRows)); ++weight)
    index -= pairs;
  int64_t first = 2 * index, blocks = divided_up(call_.outer[weight], kBlockRows);
  int64_t second = first + 1 < blocks ? first + 1 : first;  // an odd block is its own neighbour
  return {{weight, weight}, {first, second}, second - first + 1,
          {call_.blocks[weight] + first * bytes, call_.blocks[weight] + second * bytes}};
}

const uint8_t* Product::packed(int64_t tile, int64_t line) const {
  return packed_ + (tile * lines_ + line) * tile_rows_ * kLine;
}

void Product::multiply(int64_t item) const {
  int64_t first = item / groups_ * chunk_, from = item % groups_ * group_;
  Span span{first, tiles_ - first < chunk_ ? tiles_ - first : chunk_};
  int64_t count = pairs_ - from < group_ ? pairs_ - from : group_;
  TileRegisters registers(tile_rows_);
  Pair pairs[kPairsOfPass];
  bool together = pass_ * expansion_ < lines_ && chunk_ > kSmallTiles;
  auto run = [&](auto kind_tag) {
    constexpr Kind kind = decltype(kind_tag)::value;
    if (call_.scheme == Scheme::kInt4) {
      for (int64_t i = 0; i < count; ++i) multiply_groups<kind>(pair(from + i), span);
    } else if (together) {
      for (int64_t i = 0; i < count; ++i) pairs[i] = pair(from + i);
      multiply_pairs<kind>(pairs, count, span);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        pairs[0] = pair(from + i);
        multiply_pairs<kind>(pairs, 1, span);
      }
    }
  };
  switch (kind_) {
    case Kind::kF32: run(std::integral_constant<Kind, Kind::kF32>{}); break;
    case Kind::kBf16: if constexpr (kHasBf16) run(std::integral_constant<Kind, Kind::kBf16>{}); break;
    case Kind::kU8: if constexpr (kHasInt8) run(std::integral_constant<Kind, Kind::kU8>{}); break;
    case Kind::kS8: if constexpr (kHasInt8) run(std::integral_constant<Kind, Kind::kS8>{}); break;
  }
}

template <Kind kind>
void Product::multiply_pairs(const Pair* pairs, int64_t count, Span span) const {
  int64_t weight_tiles = lines_ / expansion_;
  bool decoded = is_decoded(call_.scheme, kind), single = pass_ == weight_tiles;
  int64_t sums_of_pair = span.tiles * 16 * kPairColumns;
  auto* sums = reinterpret_cast<float*>(
      sums_scratch.get((single ? 2 * 16 * kPairColumns : count * sums_of_pair) * 4));
  int64_t half_bytes = pass_ * expansion_ * kTile;
  uint8_t* scratch = decoded ? decoded_scratch.get(2 * half_bytes) : nullptr;
  for (int64_t from = 0; from < weight_tiles; from += pass_) {
    int64_t length = weight_tiles - from < pass_ ? weight_tiles - from : pass_;
    for (int64_t p = 0; p < count; ++p) {
      Operands operands{};
      operands.x_stride = lines_ * tile_rows_ * kLine;
      operands.rows = tile_rows_;
      operands.lines = length * expansion_;
      operands.accumulate = from > 0;
      for (int half = 0; half < 2; ++half) {
        const uint8_t* tiles = pairs[p].data[half] + from * kTile;
        if (decoded) {
          expand<kind>(call_.scheme, tiles, length, scratch + half * half_bytes);
          tiles = scratch + half * half_bytes;
        }
        operands.weight[half] = tiles;
      }
      for (int64_t tile = 0; tile < span.tiles; tile += 2) {
        int64_t both = span.tiles - tile < 2 ? 1 : 2;
        operands.x = packed(span.first + tile, from * expansion_);
        operands.sums = single ? sums : sums + p * sums_of_pair + tile * 16 * kPairColumns;
        multiply_pair<kind>(operands, both);
        if (from + length < weight_tiles) continue;
        for (int64_t i = 0; i < both; ++i)
          finish(pairs[p], span.first + tile + i, operands.sums + i * 16 * kPairColumns);
      }
    }
  }
}

template <Kind kind>
void Product::multiply_groups(const Pair& pair, Span span) const {
  constexpr int64_t kTileSums = 16 * kPairColumns;
  constexpr int64_t kOffset = 8;
  int64_t groups = lines_ / expansion_;
  int64_t pass = span.tiles <= kSmallTiles ? 4 : groups;
  int64_t half_bytes = pass * expansion_ * kTile;
  uint8_t* scratch = decoded_scratch.get(2 * half_bytes);
  auto* totals = reinterpret_cast<float*>(sums_scratch.get((span.tiles + 2) * kTileSums * 4));
  float* sums = totals + span.tiles * kTileSums;
  memset(totals, 0, static_cast<size_t>(span.tiles * kTileSums) * 4);
  for (int64_t from = 0; from < groups; from += pass) {
    int64_t length = groups - from < pass ? groups - from : pass;
    for (int half = 0; half < 2; ++half)
      expand<kind>(call_.scheme, pair.data[half] + from * (kTile + kLine), length,
                   scratch + half * half_bytes);
    for (int64_t tile = 0; tile < span.tiles; tile += 2) {
      int64_t both = span.tiles - tile < 2 ? 1 : 2;
      for (int64_t g = from; g < from + length; ++g) {
        uint8_t* decoded = scratch + (g - from) * expansion_ * kTile;
        Operands operands{packed(span.first + tile, g * expansion_), lines_ * tile_rows_ * kLine,
                          tile_rows_, {decoded, decoded + half_bytes}, expansion_, sums, false};
        multiply_pair<kind>(operands, both);
        float scales[2][16];
        for (int half = 0; half < 2; ++half)
          memcpy(scales[half], pair.data[half] + g * (kTile + kLine) + kTile, kLine);
        for (int64_t r = 0, row = (span.first + tile) * 16; r < both * 16 && row < call_.rows; ++r, ++row) {
          float x_scale = x_scales_[row * groups + g];
          int32_t x_sum = kOffset * x_sums_[row * groups + g];
          float* total = totals + tile * kTileSums + r * kPairColumns;
          const float* sum = sums + r * kPairColumns;
          for (int half = 0; half < 2; ++half)
            for (int c = 0; c < 16; ++c) {
              float exact;
              if constexpr (kind == Kind::kF32) exact = sum[half * 16 + c] - static_cast<float>(x_sum);
              else exact = static_cast<float>(as_int(sum[half * 16 + c]) - x_sum);
              total[half * 16 + c] += exact * (x_scale * scales[half][c]);
            }
        }
      }
    }
  }
  for (int64_t tile = 0; tile < span.tiles; ++tile)
    finish(pair, span.first + tile, totals + tile * kTileSums);
}

// Turns 16 sums of a row into numbers.
void Product::scaled(
    const Pair& pair, int64_t half, int64_t row, const float* sums, float* out) const {
  memcpy(out, sums, kLine);
  if (call_.scheme != Scheme::kInt8 && call_.scheme != Scheme::kInt8Dynamic) return;
  const uint8_t* tail = pair.data[half] + lines_ / expansion_ * kTile;
  float scales[16];
  memcpy(scales, tail, kLine);
  float factor = kind_ == Kind::kBf16 ? kInt8Bf16Unit : 1.0f;
  if (call_.scheme == Scheme::kInt8Dynamic) factor = x_scales_[row];
  if (kind_ == Kind::kU8) {
    int32_t row_sums[16], exact[16];
    memcpy(row_sums, tail + kLine, kLine);
    memcpy(exact, sums, kLine);
    for (int c = 0; c < 16; ++c) out[c] = static_cast<float>(exact[c] - 128 * row_sums[c]);
  }
  for (int c = 0; c < 16; ++c) out[c] = out[c] * factor * scales[c];
}

void Product::finish(const Pair& pair, int64_t tile, const float* sums) const {
  int64_t rows = call_.rows - tile * 16 < 16 ? call_.rows - tile * 16 : 16;
  for (int64_t r = 0; r < rows; ++r, sums += kPairColumns) {
    int64_t row = tile * 16 + r;
    float numbers[2][16];
    for (int half = 0; half < pair.count; ++half)
      scaled(pair, half, row, sums + half * 16, numbers[half]);
    int64_t halves = pair.count;
    if (call_.epilogue == Epilogue::kSiluMul) {
      for (int c = 0; c < 16; ++c)
        numbers[0][c] = numbers[0][c] / (1.0f + exponential(-numbers[0][c])) * numbers[1][c];
      halves = 1;
    }
    for (int half = 0; half < halves; ++half) {
      int64_t outer = call_.outer[pair.weight[half]], column = pair.block[half] * kBlockRows;
      int64_t count = outer - column < 16 ? outer - column : 16, at = row * outer + column;
      if (call_.epilogue == Epilogue::kAdd) {
        float residual[16] = {};
        const auto* from = static_cast<const uint8_t*>(call_.residual.data);
        widen(from + at * (call_.residual.bfloat16 ? 2 : 4), call_.residual.bfloat16, count,
              residual);
        for (int c = 0; c < 16; ++c) numbers[half][c] += residual[c];
      }
      store(numbers[half], call_.outputs[pair.weight[half]], at, count);
    }
  }
}

void Product::prepare(int64_t item) const {
  if (item < tiles_) prepare_tile(item);
  else write_zeros(item - tiles_);
}

void Product::write_zeros(int64_t item) const {
  int64_t outputs = call_.epilogue == Epilogue::kSiluMul ? 1 : call_.weights;
  int64_t from = call_.rows + item * kZeroRows;
  int64_t rows = call_.total - from < kZeroRows ? call_.total - from : kZeroRows;
  for (int64_t i = 0; i < outputs; ++i) {
    int64_t bytes = call_.outer[i] * (call_.outputs[i].bfloat16 ? 2 : 4);
    memset(static_cast<uint8_t*>(call_.outputs[i].data) + from * bytes, 0,
           static_cast<size_t>(rows * bytes));
  }
}

void Product::prepare_tile(int64_t tile) const {
  uint8_t* out = packed_ + tile * lines_ * tile_rows_ * kLine;
  for (int64_t r = 0; r < tile_rows_; ++r, out += kLine) {
    if (tile * 16 + r < call_.rows) {
      prepare_row(tile * 16 + r, out, tile_rows_ * kLine);
    } else {
      for (int64_t line = 0; line < lines_; ++line) memset(out + line * tile_rows_ * kLine, 0, kLine);
    }
  }
}

}  // namespace rtp
