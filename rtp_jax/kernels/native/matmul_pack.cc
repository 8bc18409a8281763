// Packs weights into blocks, encoding them if the scheme says so, and reads rows back.
//
// `quant/schemes.py` defines the encodings; these agree with it to the bit.
#include <cstring>

#include "matmul.h"
#include "numbers.h"

namespace rtp {
namespace {

constexpr int32_t kInt4Offset = 8;

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

float inverse_of(float scale) { return scale != 0 ? 1 / scale : 0; }

// Rounds a row to int8; gives the scale.
float encode_int8(const float* numbers, int64_t inner, int8_t* out) {
  float scale = largest(numbers, inner) / 127.0f, inverse = inverse_of(scale);
  for (int64_t i = 0; i < inner; ++i) out[i] = static_cast<int8_t>(rounded(numbers[i] * inverse));
  return scale;
}

// The number of a group with the largest magnitude, the first of equals.
float extreme_of(const float* numbers) {
  float highs[16] = {}, lows[16] = {};
  for (int64_t i = 0; i < kGroup; i += 16)
    for (int lane = 0; lane < 16; ++lane) {
      float number = numbers[i + lane];
      highs[lane] = number > highs[lane] ? number : highs[lane];
      lows[lane] = number < lows[lane] ? number : lows[lane];
    }
  float high = 0, low = 0;
  for (int lane = 0; lane < 16; ++lane) {
    high = highs[lane] > high ? highs[lane] : high;
    low = lows[lane] < low ? lows[lane] : low;
  }
  if (high != -low) return high > -low ? high : low;
  for (int64_t i = 0; i < kGroup; ++i)
    if (absolute(numbers[i]) == high) return numbers[i];
  return 0;
}

// Rounds a group to 0..15; gives the scale.
float encode_int4(const float* numbers, uint8_t* out) {
  float scale = extreme_of(numbers) / -8.0f, inverse = inverse_of(scale);
  for (int64_t i = 0; i < kGroup; ++i) {
    int32_t value = rounded(numbers[i] * inverse) + kInt4Offset;
    out[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 15 ? 15 : value);
  }
  return scale;
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

// From values [count, inner] in bytes, scales [count, groups] and zero points, if there are any.
void pack_int4(const uint8_t* values, const float* scales, const uint8_t* zeros, int64_t count,
               int64_t inner, uint8_t* out) {
  int64_t groups = inner / kGroup, bytes = kTile + (zeros != nullptr ? 2 : 1) * kLine;
  for (int64_t g = 0; g < groups; ++g, out += bytes) {
    alignas(64) uint8_t tiles[2 * kTile];
    transpose(values + g * kGroup, inner, count, 32, tiles);
    for (int64_t i = 0; i < kTile; ++i)
      out[i] = static_cast<uint8_t>(tiles[i] | tiles[kTile + i] << 4);
    float block_scales[16] = {};
    for (int64_t r = 0; r < count; ++r) block_scales[r] = scales[r * groups + g];
    memcpy(out + kTile, block_scales, kLine);
    if (zeros == nullptr) continue;
    int32_t block_zeros[16] = {};
    for (int64_t r = 0; r < count; ++r) block_zeros[r] = zeros[r * groups + g];
    memcpy(out + kTile + kLine, block_zeros, kLine);
  }
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
    for (int64_t i = 0; i < inner; ++i) {
      const uint8_t* group = block + i / kGroup * group_bytes(scheme);
      float scale;
      memcpy(&scale, group + kTile + r * 4, 4);
      int64_t place = i % kGroup, high = place / 64;
      uint8_t pair = group[place % 64 / 4 * kLine + r * 4 + place % 4];
      int32_t zero = kInt4Offset;
      if (scheme == Scheme::kInt4Zeros) memcpy(&zero, group + kTile + kLine + r * 4, 4);
      int32_t value = (high ? pair >> 4 : pair & 15) - zero;
      out[i] = static_cast<float>(value) * scale;
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
  int64_t padded = divided_up(inner, 64) * 64, groups = divided_up(inner, kGroup);
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
    uint8_t* values = values_scratch.get(kBlockRows * padded);
    auto* scales = reinterpret_cast<float*>(scales_scratch.get(kBlockRows * groups * 4));
    for (int64_t r = 0; r < count; ++r) {
      widen(first + r * inner * bytes, is_bfloat16 != 0, inner, numbers);
      if (scheme == Scheme::kInt4) {
        for (int64_t g = 0; g < groups; ++g)
          scales[r * groups + g] =
              encode_int4(numbers + g * kGroup, values + r * inner + g * kGroup);
        continue;
      }
      uint8_t* row_values = values + r * padded;
      scales[r] = encode_int8(numbers, inner, reinterpret_cast<int8_t*>(row_values));
      memset(row_values + inner, 0, static_cast<size_t>(padded - inner));
    }
    if (scheme == Scheme::kInt4) {
      pack_int4(values, scales, nullptr, count, inner, out);
    } else {
      pack_int8(reinterpret_cast<int8_t*>(values), padded, scales, count, inner, out);
    }
  }
}

// Packs values that are encoded already: int8 [outer, inner], or pairs of int4 [outer, inner / 2],
// scales [outer, groups], and zero points likewise if the scheme has them.
RTP_EXPORT void rtp_pack_values(int64_t scheme_id, const uint8_t* values, const float* scales,
                                const uint8_t* zeros, int64_t outer, int64_t inner, uint8_t* out) {
  using namespace rtp;
  auto scheme = static_cast<Scheme>(scheme_id);
  bool pairs = is_int4(scheme);
  int64_t block = block_bytes(scheme, inner), stride = pairs ? inner : divided_up(inner, 64) * 64;
  int64_t groups = pairs ? inner / kGroup : 1;
  thread_local Scratch scratch;
  uint8_t* rows = scratch.get(kBlockRows * stride);
  for (int64_t row = 0; row < outer; row += kBlockRows, out += block) {
    int64_t count = outer - row < kBlockRows ? outer - row : kBlockRows;
    for (int64_t r = 0; r < count; ++r) {
      uint8_t* to = rows + r * stride;
      if (!pairs) {
        memcpy(to, values + (row + r) * inner, static_cast<size_t>(inner));
        memset(to + inner, 0, static_cast<size_t>(stride - inner));
        continue;
      }
      const uint8_t* from = values + (row + r) * inner / 2;
      for (int64_t i = 0; i < inner / 2; ++i) {
        to[2 * i] = from[i] & 15;
        to[2 * i + 1] = from[i] >> 4;
      }
    }
    const uint8_t* block_zeros = scheme == Scheme::kInt4Zeros ? zeros + row * groups : nullptr;
    if (pairs) pack_int4(rows, scales + row * groups, block_zeros, count, inner, out);
    else pack_int8(reinterpret_cast<int8_t*>(rows), stride, scales + row, count, inner, out);
  }
}

// Reads a packed matrix back as float32 [outer, inner].
RTP_EXPORT void rtp_unpack_rows(int64_t scheme, const uint8_t* blocks, int64_t outer,
                                int64_t inner, float* out) {
  for (int64_t row = 0; row < outer; ++row)
    rtp::unpack_row(static_cast<rtp::Scheme>(scheme), blocks, row, inner, out + row * inner);
}
