// The order of a matrix product: which memory is walked when, and what is done with sums.
//
// An item is a few pairs of blocks times a chunk of rows; its sums are kept in memory.  Where the
// chunk of x stays in the L2, pairs are walked one by one:
//
//     for each pair of blocks
//       for each pass along `inner`     of the pair: stays in the L1, decoded if the kind asks for it
//         for each two tiles of rows    32 x 32 sums go to registers and back, and meanwhile those
//                                       of the two before become results, if they are complete
//
// and where it is too long for that, a pass of it stays there, and the two outer loops are swapped.
// A pair that is walked to its end has longer passes, because x then goes past the L1: sums are kept
// in memory from pass to pass, and storing them is slow.
// Meanwhile the next pair is fetched.  With few rows that is what counts: weights are read once, as
// fast as memory gives them.
#include "matmul.h"

#include <type_traits>

#include "matmul_expand.h"
#include "matmul_finish.h"
#include "matmul_lines.h"
#include "matmul_tile.h"
#include "numbers.h"

namespace rtp {
namespace {

constexpr int64_t kPassLines = 8;          // tiles along `inner` whose pair stays in the L1
constexpr int64_t kLongPassLines = 16;     // the same, if x goes past the L1
constexpr int64_t kChunkTiles = 32;        // tiles of rows whose pass stays in the L2
constexpr int64_t kLeastTiles = 16;        // tiles of rows for which weights are worth reading again
constexpr int64_t kPairsOfPass = 8;        // that share a pass of x, where all of x is too much
constexpr int64_t kResidentBytes = 1 << 20;  // of x in the L2, beside weights and sums
constexpr int64_t kStreamTiles = 8;        // tiles of rows from which on results leave the caches
constexpr int64_t kItemsOfThread = 4;      // at least, so that threads end together
constexpr int64_t kCellsOfPass = 2;        // with few rows
constexpr int64_t kFewTiles = 2;
constexpr int64_t kBatch = 4;              // groups whose sums are kept until they are added up
constexpr int64_t kTurnRows = 32;          // that are multiplied at once: two tiles
constexpr int64_t kTileSums = 16 * kPairColumns;  // of a tile of rows, words

thread_local Scratch sums_scratch, decoded_scratch, packed_scratch, scales_scratch;

Kind kind_of(const Linear& call) {
  switch (call.scheme) {
    case Scheme::kFloat32: return Kind::kF32;
    case Scheme::kBfloat16:
    case Scheme::kInt8: return kHasBf16 && call.x.bfloat16 ? Kind::kBf16 : Kind::kF32;
    case Scheme::kInt8Dynamic: return kHasInt8 ? Kind::kU8 : Kind::kF32;
    case Scheme::kFp8:
    case Scheme::kFp8Block: return kHasBf16 ? Kind::kBf16 : Kind::kF32;
    default: return kHasInt8 ? Kind::kS8 : Kind::kF32;
  }
}

bool is_decoded(Scheme scheme, Kind kind) {
  if (scheme == Scheme::kFloat32 || (scheme == Scheme::kBfloat16 && kind == Kind::kBf16))
    return false;
  return kind != Kind::kU8;
}

}  // namespace

Product::Product(const Linear& linear, int64_t threads) : call_(linear), kind_(kind_of(linear)) {
  bool grouped = is_grouped(call_.scheme);
  weight_tiles_ = divided_up(call_.inner, grouped ? kCell : tile_inner(call_.scheme));
  x_groups_ = call_.inner / group_of(call_.scheme, call_.inner);
  group_tiles_ = group_tiles(call_.scheme, kind_);
  expansion_ = expansion(call_.scheme, kind_);
  lines_ = weight_tiles_ * expansion_;
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
  chunk_ = tiles_ < kChunkTiles || is_int4(call_.scheme) ? tiles_ : kChunkTiles;
  int64_t resident = kResidentBytes / (lines_ * kTile) / 2 * 2;  // tiles of rows
  if (!is_int4(call_.scheme) && resident >= kLeastTiles && chunk_ > resident)
    chunk_ = resident;
  if (call_.scheme == Scheme::kFp8Block && chunk_ > kLeastTiles && chunk_ > resident)
    chunk_ = kLeastTiles;
  along_ = chunk_ <= resident;
  past_l1_ = along_ && tiles_ > kFewTiles;
  pass_ = (past_l1_ ? kLongPassLines : kPassLines) / expansion_;
  if (pass_ < 1) pass_ = 1;
  if (pass_ > weight_tiles_) pass_ = weight_tiles_;
  int64_t share = pairs_ / (kItemsOfThread * threads);
  group_ = share < kPairsOfPass ? share : kPairsOfPass;
  if (group_ < 1) group_ = 1;
  groups_ = divided_up(pairs_, group_);
  chunks_ = chunk_ ? divided_up(tiles_, chunk_) : 0;
  streams_ = tiles_ >= kStreamTiles;
  packed_ = packed_scratch.get(tiles_ * lines_ * tile_rows_ * kLine);
  int64_t scales = tiles_ * 16 * x_groups_;
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
  for (int64_t i = 0; i < count; ++i) pairs[i] = pair(from + i);
  auto run = [&](auto kind_tag) {
    constexpr Kind kind = decltype(kind_tag)::value;
    if (!is_grouped(call_.scheme)) {
      multiply_pairs<kind>(pairs, count, span);
      return;
    }
    for (int64_t i = 0; i < count; ++i)
      multiply_groups<kind>(pairs[i], pairs[i + 1 < count ? i + 1 : i], span);
  };
  switch (kind_) {
    case Kind::kF32: run(std::integral_constant<Kind, Kind::kF32>{}); break;
    case Kind::kBf16: if constexpr (kHasBf16) run(std::integral_constant<Kind, Kind::kBf16>{}); break;
    case Kind::kU8: if constexpr (kHasInt8) run(std::integral_constant<Kind, Kind::kU8>{}); break;
    case Kind::kS8: if constexpr (kHasInt8) run(std::integral_constant<Kind, Kind::kS8>{}); break;
  }
  if (streams_) end_streams();
}

Product::Step Product::step(int64_t index, int64_t count) const {
  int64_t passes = divided_up(weight_tiles_, pass_);
  if (along_) return {index / passes, index % passes * pass_};
  return {index % count, index / count * pass_};
}

// Has what step `index` walks fetched meanwhile.
void Product::fetch(const Pair* pairs, int64_t index, int64_t count, Span span,
                    Operands& operands) const {
  operands.next_lines = 0;
  auto [next, from] = step(index, count);
  if (next >= count || from >= weight_tiles_) return;
  int64_t tiles = weight_tiles_ - from < pass_ ? weight_tiles_ - from : pass_;
  int64_t turns = divided_up(span.tiles, 2) * operands.lines;
  operands.next[0] = pairs[next].data[0] + from * kTile;
  operands.next[1] = pairs[next].data[1] + from * kTile;
  operands.next_lines = divided_up(tiles * kTile / kLine, turns);
}

template <Kind kind>
void Product::multiply_pairs(const Pair* pairs, int64_t count, Span span) const {
  bool decoded = is_decoded(call_.scheme, kind);
  int64_t sums_of_pair = span.tiles * kTileSums;
  auto* all_sums =
      reinterpret_cast<float*>(sums_scratch.get((along_ ? 1 : count) * sums_of_pair * 4));
  int64_t half_bytes = pass_ * expansion_ * kTile;
  uint8_t* scratch = decoded ? decoded_scratch.get(2 * half_bytes) : nullptr;
  int64_t steps = count * divided_up(weight_tiles_, pass_);
  for (int64_t index = 0; index < steps; ++index) {
    auto [p, from] = step(index, count);
    int64_t length = weight_tiles_ - from < pass_ ? weight_tiles_ - from : pass_;
    float* sums = all_sums + (along_ ? 0 : p * sums_of_pair);
    Operands operands{};
    operands.x_stride = lines_ * tile_rows_ * kLine;
    operands.rows = tile_rows_;
    operands.past_l1 = past_l1_;
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
    fetch(pairs, index + 1, count, span, operands);
    bool last = from + length == weight_tiles_;
    Finish how = last ? finish_of(pairs[p]) : Finish{};
    int64_t rows = divided_up(kTurnRows, operands.lines);  // of the last turn, beside each line
    for (int64_t tile = 0; tile < span.tiles; tile += 2) {
      int64_t both = span.tiles - tile < 2 ? 1 : 2, row = (span.first + tile) * 16 - kTurnRows;
      operands.x = packed(span.first + tile, from * expansion_);
      operands.sums = sums + tile * kTileSums;
      multiply_pair<kind>(operands, both, [&, finishes = last && tile](int64_t line) {
        int64_t at = line * rows, left = kTurnRows - at;
        if (finishes && left > 0)
          finish(how, row + at, rows < left ? rows : left, operands.sums - left * kPairColumns);
      });
      operands.next[0] += operands.lines * operands.next_lines * kLine;
      operands.next[1] += operands.lines * operands.next_lines * kLine;
    }
    if (!last) continue;
    int64_t tile = (span.tiles - 1) / 2 * 2;
    finish(how, (span.first + tile) * 16, (span.tiles - tile) * 16, sums + tile * kTileSums);
  }
}

template <Kind kind>
void Product::multiply_groups(const Pair& pair, const Pair& after, Span span) const {
  int64_t bytes = cell_bytes(call_.scheme), group = group_of(call_.scheme, kCell);
  int64_t in_cell = kCell / group, tiles_of_cell = in_cell * group_tiles_;
  int64_t cells = span.tiles <= kFewTiles ? kCellsOfPass : weight_tiles_;
  int64_t pass = cells * in_cell;  // groups
  int64_t half_bytes = cells * tiles_of_cell * kTile;
  uint8_t* scratch = decoded_scratch.get(2 * half_bytes);
  auto* totals = reinterpret_cast<float*>(
      sums_scratch.get((span.tiles + 2 * kBatch) * kTileSums * 4));
  float* sums = totals + span.tiles * kTileSums;
  memset(totals, 0, static_cast<size_t>(span.tiles * kTileSums) * 4);
  for (int64_t from = 0; from < x_groups_; from += pass) {
    int64_t end = x_groups_ - from < pass ? x_groups_ : from + pass;
    for (int half = 0; half < 2; ++half)
      expand_cells<kind>(call_.scheme, pair.data[half] + from / in_cell * bytes,
                         divided_up(end - from, in_cell), scratch + half * half_bytes);
    // What follows is fetched, as in `fetch`; with many rows there is time enough without.
    const Pair& next = end < x_groups_ ? pair : after;
    int64_t start = end < x_groups_ ? end / in_cell : 0;
    int64_t fetched = span.tiles <= kFewTiles ? cells * bytes / kLine : 0;
    int64_t steps = (end - from) * group_tiles_, at = start * bytes;
    for (int64_t tile = 0; tile < span.tiles; tile += 2) {
      int64_t both = span.tiles - tile < 2 ? 1 : 2;
      for (int64_t first = from; first < end; first += kBatch) {
        int64_t count = end - first < kBatch ? end - first : kBatch;
        for (int64_t g = 0; g < count; ++g) {
          uint8_t* decoded = scratch + (first + g - from) * group_tiles_ * kTile;
          Operands operands{packed(span.first + tile, (first + g) * group / line_inner(kind)),
                            lines_ * tile_rows_ * kLine, tile_rows_,
                            {decoded, decoded + half_bytes}, group_tiles_,
                            sums + g * 2 * kTileSums, false, false,
                            {next.data[0] + at, next.data[1] + at}, divided_up(fetched, steps)};
          at += group_tiles_ * operands.next_lines * kLine;
          multiply_pair<kind>(operands, both, [](int64_t) {});
        }
        Span tiles{span.first + tile, both};
        float* sum = totals + tile * kTileSums;
        if (kind == Kind::kBf16 || is_fp8(call_.scheme))
          add_groups<kind, Shift::kNone>(pair, tiles, first, count, sums, sum);
        else if (has_zeros(call_.scheme))
          add_groups<kind, Shift::kZeros>(pair, tiles, first, count, sums, sum);
        else
          add_groups<kind, Shift::kEight>(pair, tiles, first, count, sums, sum);
      }
    }
  }
  finish(finish_of(pair), span.first * 16, span.tiles * 16, totals);
}

// Adds the sums of `count` groups from `first`, times their scales, to `totals`.
template <Kind kind, Product::Shift shift>
void Product::add_groups(const Pair& pair, Span span, int64_t first, int64_t count,
                         const float* sums, float* totals) const {
  constexpr bool whole = kind == Kind::kU8 || kind == Kind::kS8;
  int64_t row = span.first * 16, rows = call_.rows - row;
  if (rows > span.tiles * 16) rows = span.tiles * 16;
  for (int half = 0; half < 2; ++half) {
    const uint8_t* scales[kBatch];
    for (int64_t g = 0; g < count; ++g)
      scales[g] = pair.data[half] + scales_at(call_.scheme, first + g);
    for (int64_t r = 0; r < rows; ++r) {
      int64_t at = (row + r) * x_groups_ + first, place = r * kPairColumns + half * 16;
      Floats total;
      load(total, totals + place);
      for (int64_t g = 0; g < count; ++g) {
        Floats sum, scale;
        load(sum, sums + g * 2 * kTileSums + place);
        load(scale, scales[g]);
        if constexpr (shift != Shift::kNone) {
          Ints offset = Ints{} + 8;
          if constexpr (shift == Shift::kZeros) load(offset, scales[g] + kLine);
          offset *= x_sums_[at + g];
          if constexpr (whole) sum = __builtin_convertvector((Ints)sum - offset, Floats);
          else sum -= __builtin_convertvector(offset, Floats);
        }
        total += sum * (x_scales_[at + g] * scale);
      }
      store(total, totals + place);
    }
  }
}

}  // namespace rtp
