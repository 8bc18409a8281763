// Matrix products with packed weights: out[m, o] = sum over i of x[m, i] * weight[o, i].
//
// Read next: matmul_tile.h for the inner loops, matmul.cc for the order in which memory is walked.
//
// A packed matrix is a row of blocks, each 16 rows (`outer`) of the weight, transposed so that one
// line of 64 bytes holds all 16 rows at a few consecutive places along `inner`:
//
//     plain float32   a line is 16 rows x 1 number        line l: places [l]
//     plain bfloat16  a line is 16 rows x 2 numbers       line l: places [2l, 2l + 1]
//     int8            a line is 16 rows x 4 numbers       line l: places [4l .. 4l + 3]
//     fp8             as int8, in the order in which halves of words become bfloat16
//     int4            as int8, two lines in one, see below
//
//     line of int8:   | r0 i0 i1 i2 i3 | r1 i0 i1 i2 i3 | ... | r15 i0 i1 i2 i3 |
//     line of fp8:    | r0 i0 i2 i1 i3 | r1 i0 i2 i1 i3 | ... | r15 i0 i2 i1 i3 |
//
// 16 lines are a tile of 1 KB: what one AMX instruction multiplies, and what AVX-512 walks line by
// line with a broadcast of x and without horizontal sums.  `inner` is padded with zeros to whole
// tiles (16, 32, 64 numbers), `outer` to whole blocks.
//
//     block of plain:  | tile | tile | ...
//     block of int8:   | tile | tile | ... | 16 scales, float32 | 16 sums of rows, int32 |
//     block of fp8:    | tile | tile | ... | 16 scales, float32 |
//     block of groups: | cell | cell | ...                  a cell is 128 places
//        of fp8_block: | tile | tile | 16 scales |
//        of int4:      | tile of pairs | 16 scales |
//        of int4_zeros | tile of pairs | 16 scales | 16 zero points, int32 |
//                      and in groups of 64 or 32 such scales, and zero points, two or four times
//        tile of pairs: low halves are the tile of places [0, 64), high halves that of [64, 128);
//                       each half is value + 8, so 0..15; of int4_zeros value + its zero point
//
// What is multiplied, and how exactly:
//  - plain and int8, x float32: float32 times float32.
//  - plain and int8, x bfloat16: exact products of bfloat16, summed in float32, times the scale.
//  - int8_dynamic: x is rounded to int8 for each token; sums are exact integers.
//  - int4: x is rounded to int8 for each token and group, so a term errs by at most
//    |weight| * max |x of its group| / 254 beside the error of the weight; sums of a group are exact.
//  - fp8, fp8_block: x is rounded to float8 for each token, or token and group; products of float8
//    are exact, summed in float32, times the scales.
// What is no number in a row of x, or of a weight, leaves none in any product of that row: where rows
// are rounded, the scale of the row, or of the group, is then NaN.
// A row of the result does not depend on how many rows are computed with it.
#pragma once
#include <cstdint>

namespace rtp {

enum class Scheme : int64_t {
  kFloat32 = 0, kBfloat16 = 1, kInt8 = 2, kInt8Dynamic = 3, kInt4 = 4, kInt4Zeros = 5,
  kFp8 = 6, kFp8Block = 7,
  kInt4By64 = 8, kInt4ZerosBy64 = 9, kInt4By32 = 10, kInt4ZerosBy32 = 11
};
enum class Epilogue : int64_t { kNone = 0, kAdd = 1, kSiluMul = 2 };

constexpr int64_t kBlockRows = 16, kLine = 64, kTile = 1024, kCell = 128;
constexpr int64_t kMaxInner = 65536;  // of int8: 255 * 127 * kMaxInner fits an int32
constexpr int64_t kZeroRows = 64;     // of an item that only writes zeros
constexpr int64_t kMaxWeights = 8;    // that share one x in one call

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many numbers along `inner` a tile covers.
inline int64_t tile_inner(Scheme scheme) {
  switch (scheme) {
    case Scheme::kFloat32: return 16;
    case Scheme::kBfloat16: return 32;
    default: return 64;
  }
}

inline bool is_int4(Scheme scheme) {
  return scheme == Scheme::kInt4 || scheme == Scheme::kInt4Zeros || scheme >= Scheme::kInt4By64;
}

inline bool has_zeros(Scheme scheme) {
  return scheme == Scheme::kInt4Zeros || scheme == Scheme::kInt4ZerosBy64 ||
         scheme == Scheme::kInt4ZerosBy32;
}

inline bool is_fp8(Scheme scheme) {
  return scheme == Scheme::kFp8 || scheme == Scheme::kFp8Block;
}

// Whether a row has several scales, and blocks are made of cells.
inline bool is_grouped(Scheme scheme) { return is_int4(scheme) || scheme == Scheme::kFp8Block; }

// Whether blocks end with a scale for each row.
inline bool has_row_scales(Scheme scheme) {
  return scheme == Scheme::kInt8 || scheme == Scheme::kInt8Dynamic || scheme == Scheme::kFp8;
}

// Places along `inner` that share a scale.
inline int64_t group_of(Scheme scheme, int64_t inner) {
  switch (scheme) {
    case Scheme::kInt4By64:
    case Scheme::kInt4ZerosBy64: return 64;
    case Scheme::kInt4By32:
    case Scheme::kInt4ZerosBy32: return 32;
    default: return is_grouped(scheme) ? kCell : inner;
  }
}

// The part of a cell that is values.
inline int64_t cell_values(Scheme scheme) { return is_int4(scheme) ? kTile : 2 * kTile; }

inline int64_t cell_bytes(Scheme scheme) {
  int64_t groups = kCell / group_of(scheme, kCell);
  return cell_values(scheme) + groups * (has_zeros(scheme) ? 2 : 1) * kLine;
}

// Where in a block the scales of a group begin; zero points follow them.
inline int64_t scales_at(Scheme scheme, int64_t group) {
  int64_t groups = kCell / group_of(scheme, kCell);
  return group / groups * cell_bytes(scheme) + cell_values(scheme) +
         group % groups * (has_zeros(scheme) ? 2 : 1) * kLine;
}

inline int64_t block_bytes(Scheme scheme, int64_t inner) {
  if (is_grouped(scheme)) return divided_up(inner, kCell) * cell_bytes(scheme);
  int64_t tiles = divided_up(inner, tile_inner(scheme)) * kTile;
  int64_t lines = !has_row_scales(scheme) ? 0 : scheme == Scheme::kFp8 ? 1 : 2;
  return tiles + lines * kLine;
}

// Numbers of a caller: rows end to end, float32 or bfloat16.
struct Rows {
  void* data = nullptr;
  bool bfloat16 = false;
};

// One call.  `outputs` has one entry for each weight, but one for both of kSiluMul.
struct Linear {
  Scheme scheme;
  Epilogue epilogue;
  int64_t inner;
  int64_t rows;  // of x that are computed; `total` are there, and the others of `outputs` get zeros
  int64_t total;
  Rows x;
  Rows residual;  // of kAdd, as wide as the output
  int64_t weights;
  const uint8_t* blocks[kMaxWeights];
  int64_t outer[kMaxWeights];  // numbers in a row of the output
  Rows outputs[kMaxWeights];
};

enum class Kind;  // of matmul_tile.h: what is multiplied
struct Operands;

// A call, cut into items for any number of threads: first all items of `prepare`, then all of
// `multiply`, in any order and at once.  Memory is that of the thread that made it, which must not
// make another before this one is done.
class Product {
 public:
  Product(const Linear& linear, int64_t threads);
  int64_t prepare_items() const { return tiles_ + zero_items_; }
  int64_t multiply_items() const { return chunks_ * groups_; }
  // Whether preparing takes so long that it should be shared among threads.
  bool prepares_much() const { return prepare_items() > 2; }
  void prepare(int64_t item) const;
  void multiply(int64_t item) const;

 private:
  // Two blocks that are multiplied together: neighbours, or those of gate and up for kSiluMul.
  struct Pair {
    int64_t weight[2], block[2], count;
    const uint8_t* data[2];
  };
  // What is walked at once: some tiles of a pair along `inner`.
  struct Step {
    int64_t pair, from;
  };
  // Rows that are multiplied together, in tiles.
  struct Span {
    int64_t first, tiles;
  };
  Pair pair(int64_t index) const;
  Step step(int64_t index, int64_t count) const;
  void fetch(const Pair*, int64_t index, int64_t count, Span, Operands&) const;
  const uint8_t* packed(int64_t tile, int64_t line) const;
  void prepare_tile(int64_t tile) const;
  void prepare_row(int64_t row, uint8_t* out, int64_t step) const;
  template <class Number>
  void prepare_numbers(int64_t row, uint8_t* out, int64_t step) const;
  void write_zeros(int64_t item) const;
  template <Kind kind> void multiply_pairs(const Pair*, int64_t count, Span) const;
  template <Kind kind> void multiply_groups(const Pair&, const Pair& after, Span) const;
  enum class Shift { kNone, kEight, kZeros };  // what stored values are above those that they mean
  template <Kind kind, Shift shift>
  void add_groups(const Pair&, Span, int64_t first, int64_t count, const float* sums,
                  float* totals) const;
  struct Finish;
  Finish finish_of(const Pair&) const;
  void finish(const Finish&, int64_t row, int64_t rows, const float* sums) const;
  template <bool whole, bool scaled>
  void finish_rows(const Finish&, int64_t first, int64_t last, const float* sums) const;

  Linear call_;
  Kind kind_;
  int64_t weight_tiles_;  // along `inner`; cells of a scheme with groups
  int64_t x_groups_;      // of a row: its scales, if it is rounded
  int64_t group_tiles_;   // that one group of a scheme with groups is decoded to
  int64_t lines_;      // tiles of packed x along `inner`
  int64_t expansion_;  // of these, how many meet one tile, or cell, of a weight
  int64_t tile_rows_;  // rows in a tile of x: 16, or fewer if there are no more
  int64_t tiles_, zero_items_;
  int64_t chunk_;      // tiles of rows that meet a weight while it is in the cache
  int64_t pass_;       // tiles of a weight along `inner` that are walked at once
  int64_t group_;      // pairs of an item
  bool along_;         // whether a pair is walked to its end before the next
  bool past_l1_;       // whether x goes past the L1, which is kept for the pair
  bool streams_;       // whether results are more than the L2 holds
  int64_t pairs_, chunks_, groups_;
  uint8_t* packed_;
  float* x_scales_;    // of quantized x: [rows, groups]
  int32_t* x_sums_;    // of int4: [rows, groups]
};

// Reads one row of a packed matrix, as numbers [inner].
void unpack_row(Scheme scheme, const uint8_t* blocks, int64_t row, int64_t inner, float* out);

}  // namespace rtp
