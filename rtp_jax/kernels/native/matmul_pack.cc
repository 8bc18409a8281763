// Packs weights into blocks, encoding them if the scheme says so, and reads rows back.
//
// `quant/schemes.py` defines the encodings; these agree with it to the bit.
#include <cstring>

#include "matmul.h"
#include "matmul_encode.h"
#include "matmul_fp8.h"
#include "numbers.h"

namespace rtp {
namespace {

// Lays 16 rows of dwords side by side: out[line][row] = rows[row][line]; absent rows are zeros.
void transpose(const uint8_t* rows, int64_t stride, int64_t count, int64_t dwords, uint8_t* out) {
  auto* lines = reinterpret_cast<uint32_t*>(out);
  if (count == kBlockRows) {
    constexpr int64_t kAtOnce = 16;  // a line of the cache of every row
    int64_t from = 0;
    for (; from + kAtOnce <= dwords; from += kAtOnce)
      for (int64_t r = 0; r < kBlockRows; ++r) {
        uint32_t line[kAtOnce];
        memcpy(line, rows + r * stride + from * 4, sizeof(line));
        for (int64_t i = 0; i < kAtOnce; ++i) lines[(from + i) * kBlockRows + r] = line[i];
      }
    for (; from < dwords; ++from)
      for (int64_t r = 0; r < kBlockRows; ++r)
        memcpy(lines + from * kBlockRows + r, rows + r * stride + from * 4, 4);
    return;
  }
  for (int64_t i = 0; i < dwords; ++i)
    for (int64_t r = 0; r < kBlockRows; ++r) {
      lines[i * kBlockRows + r] = 0;
      if (r < count) memcpy(lines + i * kBlockRows + r, rows + r * stride + i * 4, 4);
    }
}

// Plain numbers are not changed, so they are dwords of one or two; the last may be half.
void pack_plain(const uint8_t* rows, int64_t count, int64_t inner, int64_t bytes, int64_t block,
                uint8_t* out) {
  int64_t whole = inner * bytes / 4;
  transpose(rows, inner * bytes, count, whole, out);
  memset(out + whole * kLine, 0, static_cast<size_t>(block - whole * kLine));
  if (inner * bytes % 4 == 0) return;
  for (int64_t r = 0; r < count; ++r)
    memcpy(out + whole * kLine + r * 4, rows + (r + 1) * inner * bytes - 2, 2);
}

// From values [count, stride] in int8 and their scales.
void pack_int8(const int8_t* values, int64_t stride, const float* scales, int64_t count,
               int64_t inner, uint8_t* out) {
  int64_t tiles = divided_up(inner, 64);
  transpose(reinterpret_cast<const uint8_t*>(values), stride, count, tiles * 16, out);
  float block_scales[16] = {};
  int32_t sums[16] = {};
  for (int64_t r = 0; r < count; ++r) {
    block_scales[r] = scales[r];
    for (int64_t i = 0; i < inner; ++i) sums[r] += values[r * stride + i];
  }
  memcpy(out + tiles * kTile, block_scales, kLine);
  memcpy(out + tiles * kTile + kLine, sums, kLine);
}

// Changes the order of four numbers in each dword: see `fp8_place`.
void swap_middles(uint8_t* lines, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 4) {
    uint8_t second = lines[i + 1];
    lines[i + 1] = lines[i + 2];
    lines[i + 2] = second;
  }
}

// The scales of 16 rows, of those that there are; NaN where one of `group` values is.
void pack_fp8_scales(const uint8_t* values, int64_t stride, int64_t group, const float* scales,
                     int64_t groups, int64_t count, uint8_t* out) {
  float block_scales[16] = {};
  for (int64_t r = 0; r < count; ++r) {
    bool broken = false;
    for (int64_t i = 0; i < group; ++i) broken |= is_nan_fp8(values[r * stride + i]);
    block_scales[r] = broken ? __builtin_nanf("") : scales[r * groups];
  }
  memcpy(out, block_scales, kLine);
}

// From values [count, stride] and scales [count, groups].
void pack_fp8(Scheme scheme, const uint8_t* values, int64_t stride, const float* scales,
              int64_t count, int64_t inner, uint8_t* out) {
  if (!is_grouped(scheme)) {
    int64_t tiles = divided_up(inner, 64);
    transpose(values, stride, count, tiles * 16, out);
    swap_middles(out, tiles * kTile);
    pack_fp8_scales(values, stride, inner, scales, 1, count, out + tiles * kTile);
    return;
  }
  int64_t groups = inner / kCell;
  for (int64_t g = 0; g < groups; ++g, values += kCell, out += cell_bytes(scheme)) {
    transpose(values, stride, count, kCell / 4, out);
    swap_middles(out, 2 * kTile);
    pack_fp8_scales(values, stride, kCell, scales + g, groups, count, out + 2 * kTile);
  }
}

// From values [count, stride] in bytes, scales [count, groups] and zero points, if there are any.
void pack_int4(Scheme scheme, const uint8_t* values, int64_t stride, const float* scales,
               const uint8_t* zeros, int64_t count, int64_t inner, uint8_t* out) {
  for (int64_t i = 0; i < divided_up(inner, kCell); ++i) {
    alignas(64) uint8_t tiles[2 * kTile];
    transpose(values + i * kCell, stride, count, kCell / 4, tiles);
    uint8_t* cell = out + i * cell_bytes(scheme);
    for (int64_t at = 0; at < kTile; ++at)
      cell[at] = static_cast<uint8_t>(tiles[at] | tiles[kTile + at] << 4);
    memset(cell + kTile, 0, static_cast<size_t>(cell_bytes(scheme) - kTile));
  }
  int64_t groups = inner / group_of(scheme, inner);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* to = out + scales_at(scheme, g) + r * 4;
      memcpy(to, scales + r * groups + g, 4);
      if (zeros == nullptr) continue;
      int32_t zero = zeros[r * groups + g];
      memcpy(to + kLine, &zero, 4);
    }
}

// Bytes of a row of values that are packed: of whole tiles, or cells.
int64_t padded(Scheme scheme, int64_t inner) {
  int64_t places = is_grouped(scheme) ? kCell : 64;
  return divided_up(inner, places) * places;
}

// From values [count, padded], the rest of each row zeros, scales and zero points [count, groups].
void pack_block(Scheme scheme, const uint8_t* values, const float* scales, const uint8_t* zeros,
                int64_t count, int64_t inner, uint8_t* out) {
  int64_t stride = padded(scheme, inner);
  if (is_fp8(scheme)) pack_fp8(scheme, values, stride, scales, count, inner, out);
  else if (is_int4(scheme)) pack_int4(scheme, values, stride, scales, zeros, count, inner, out);
  else pack_int8(reinterpret_cast<const int8_t*>(values), stride, scales, count, inner, out);
}

}  // namespace

void unpack_row(Scheme scheme, const uint8_t* blocks, int64_t row, int64_t inner, float* out) {
  const uint8_t* block = blocks + row / kBlockRows * block_bytes(scheme, inner);
  int64_t r = row % kBlockRows;
  if (scheme == Scheme::kFloat32) {
    for (int64_t i = 0; i < inner; ++i) memcpy(out + i, block + i * kLine + r * 4, 4);
  } else if (scheme == Scheme::kBfloat16) {
    for (int64_t i = 0; i < inner; ++i) {
      uint16_t half;
      memcpy(&half, block + i / 2 * kLine + r * 4 + i % 2 * 2, 2);
      out[i] = from_bf16(half);
    }
  } else if (is_int4(scheme)) {
    int64_t size = group_of(scheme, inner);
    for (int64_t i = 0; i < inner; ++i) {
      const uint8_t* cell = block + i / kCell * cell_bytes(scheme);
      const uint8_t* scales = block + scales_at(scheme, i / size) + r * 4;
      float scale;
      memcpy(&scale, scales, 4);
      int64_t place = i % kCell, high = place / 64;
      uint8_t pair = cell[place % 64 / 4 * kLine + r * 4 + place % 4];
      int32_t zero = kInt4Offset;
      if (has_zeros(scheme)) memcpy(&zero, scales + kLine, 4);
      int32_t value = (high ? pair >> 4 : pair & 15) - zero;
      out[i] = static_cast<float>(value) * scale;
    }
  } else if (is_fp8(scheme)) {
    bool grouped = is_grouped(scheme);
    int64_t tail = divided_up(inner, 64) * kTile;
    for (int64_t i = 0; i < inner; ++i) {
      int64_t place = grouped ? i % kCell : i;
      const uint8_t* lines = grouped ? block + i / kCell * cell_bytes(scheme) : block;
      float scale;
      memcpy(&scale, block + (grouped ? scales_at(scheme, i / kCell) : tail) + r * 4, 4);
      out[i] = from_fp8(lines[place / 4 * kLine + r * 4 + fp8_place(place % 4)]) * scale;
    }
  } else {
    float scale;
    memcpy(&scale, block + divided_up(inner, 64) * kTile + r * 4, 4);
    for (int64_t i = 0; i < inner; ++i)
      out[i] = static_cast<float>(static_cast<int8_t>(block[i / 4 * kLine + r * 4 + i % 4])) * scale;
  }
}

}  // namespace rtp

#define RTP_EXPORT extern "C" __attribute__((visibility("default")))

RTP_EXPORT int64_t rtp_block_bytes(int64_t scheme, int64_t inner) {
  return rtp::block_bytes(static_cast<rtp::Scheme>(scheme), inner);
}

// Packs rows [outer, inner], float32 or bfloat16, as whole blocks; a plain scheme has their dtype.
RTP_EXPORT void rtp_pack_rows(int64_t scheme_id, const void* rows, int64_t is_bfloat16,
                              int64_t outer, int64_t inner, uint8_t* out) {
  using namespace rtp;
  auto scheme = static_cast<Scheme>(scheme_id);
  int64_t bytes = is_bfloat16 ? 2 : 4, block = block_bytes(scheme, inner);
  int64_t stride = padded(scheme, inner), groups = inner / group_of(scheme, inner);
  thread_local Scratch numbers_scratch, values_scratch, scales_scratch;
  const auto* source = static_cast<const uint8_t*>(rows);
  for (int64_t row = 0; row < outer; row += kBlockRows, out += block) {
    int64_t count = outer - row < kBlockRows ? outer - row : kBlockRows;
    const uint8_t* first = source + row * inner * bytes;
    if (scheme == Scheme::kFloat32 || scheme == Scheme::kBfloat16) {
      pack_plain(first, count, inner, bytes, block, out);
      continue;
    }
    auto* numbers = reinterpret_cast<float*>(numbers_scratch.get(inner * 4));
    uint8_t* values = values_scratch.get(kBlockRows * stride);
    auto* scales = reinterpret_cast<float*>(scales_scratch.get(kBlockRows * groups * 4));
    for (int64_t r = 0; r < count; ++r) {
      widen(first + r * inner * bytes, is_bfloat16 != 0, inner, numbers);
      encode_row(scheme, numbers, inner, values + r * stride, scales + r * groups);
      memset(values + r * stride + inner, 0, static_cast<size_t>(stride - inner));
    }
    pack_block(scheme, values, scales, nullptr, count, inner, out);
  }
}

// Packs values that are encoded already: bytes [outer, inner], or pairs of int4 [outer, inner / 2],
// scales [outer, groups], and zero points likewise if the scheme has them.
RTP_EXPORT void rtp_pack_values(int64_t scheme_id, const uint8_t* values, const float* scales,
                                const uint8_t* zeros, int64_t outer, int64_t inner, uint8_t* out) {
  using namespace rtp;
  auto scheme = static_cast<Scheme>(scheme_id);
  int64_t block = block_bytes(scheme, inner), stride = padded(scheme, inner);
  int64_t groups = inner / group_of(scheme, inner);
  thread_local Scratch scratch;
  uint8_t* rows = scratch.get(kBlockRows * stride);
  for (int64_t row = 0; row < outer; row += kBlockRows, out += block) {
    int64_t count = outer - row < kBlockRows ? outer - row : kBlockRows;
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* to = rows + r * stride;
      memset(to + inner, 0, static_cast<size_t>(stride - inner));
      if (!is_int4(scheme)) {
        memcpy(to, values + (row + r) * inner, static_cast<size_t>(inner));
        continue;
      }
      const uint8_t* from = values + (row + r) * inner / 2;
      for (int64_t i = 0; i < inner / 2; ++i) {
        to[2 * i] = from[i] & 15;
        to[2 * i + 1] = from[i] >> 4;
      }
    }
    const uint8_t* block_zeros = has_zeros(scheme) ? zeros + row * groups : nullptr;
    pack_block(scheme, rows, scales + row * groups, block_zeros, count, inner, out);
  }
}

// Reads a packed matrix back as float32 [outer, inner].
RTP_EXPORT void rtp_unpack_rows(int64_t scheme, const uint8_t* blocks, int64_t outer,
                                int64_t inner, float* out) {
  for (int64_t row = 0; row < outer; ++row)
    rtp::unpack_row(static_cast<rtp::Scheme>(scheme), blocks, row, inner, out + row * inner);
}
