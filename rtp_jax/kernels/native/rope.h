// What stands between the projections and the pages: norms, the rotation, and the writes.
#pragma once
#include <cmath>

#include "stored.h"

namespace rtp::rope {

constexpr int64_t kMaxHeadDim = 512;

// Rows of bfloat16 or float32 numbers.
struct Numbers {
  void read(int64_t at, int64_t count, float* to) const {
    widen(data + at * (bfloat16 ? 2 : 4), bfloat16, count, to);
  }
  void write(int64_t at, int64_t count, const float* from) const {
    if (!bfloat16) {
      memcpy(data + at * 4, from, static_cast<size_t>(count) * 4);
      return;
    }
    narrow(from, count, reinterpret_cast<uint16_t*>(data) + at);
  }
  void clear(int64_t at, int64_t count) const {
    const int64_t bytes = bfloat16 ? 2 : 4;
    memset(data + at * bytes, 0, static_cast<size_t>(count * bytes));
  }
  char* data;
  bool bfloat16;
};

// Makes numbers of bfloat16 of a row, in place.
inline void round_row(float* x, int64_t count) {
  uint16_t halves[kMaxHeadDim];
  narrow(x, count, halves);
  widen(halves, true, count, x);
}

inline float squares(const float* x, int64_t count) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int lane = 0; lane < 16; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
  for (int width = 8; width; width /= 2)
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  for (; i < count; ++i) lanes[0] += x[i] * x[i];
  return lanes[0];
}

inline void normalise(float* x, int64_t count, const float* scale, float eps, bool round) {
  const float by = 1.0f / std::sqrt(squares(x, count) / static_cast<float>(count) + eps);
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] * by * scale[i];
  if (round) round_row(x, count);
}

// Turns a head by the angles of its token: the pair of number i is (i, i + half).
inline void rotate(float* x, int64_t half, const float* cos, const float* sin) {
  for (int64_t i = 0; i < half; ++i) {
    const float low = x[i], high = x[i + half];
    x[i] = low * cos[i] - high * sin[i];
    x[i + half] = high * cos[i] + low * sin[i];
  }
}

// KV pages, and the scales beside them if there are any.
struct Pages {
  void write(int64_t row, int64_t dim, const float* head) const {
    const float scale = store_row(stored, head, dim, data + row * dim * bytes_of(stored));
    if (scales) scales[row] = scale;
  }
  char* data;
  float* scales;
  Stored stored;
};

// What all tokens of a call share.
struct Call {
  Numbers query, key, value, out;
  Pages pages;
  const float *cos, *sin;
  float query_scale[kMaxHeadDim], key_scale[kMaxHeadDim];
  bool normed;
  float eps;
  int64_t heads, kv_heads, dim, layers, page_size, num_pages, layer;
};

// One token: its queries, and its keys and values, which go to `place` of `page`.
inline void turn_token(const Call& c, int64_t token, int64_t page, int64_t place) {
  float x[kMaxHeadDim];
  const int64_t half = c.dim / 2;
  const float *cos = c.cos + token * half, *sin = c.sin + token * half;
  for (int64_t head = 0; head < c.heads; ++head) {
    const int64_t at = (token * c.heads + head) * c.dim;
    c.query.read(at, c.dim, x);
    if (c.normed) normalise(x, c.dim, c.query_scale, c.eps, c.query.bfloat16);
    rotate(x, half, cos, sin);
    c.out.write(at, c.dim, x);
  }
  for (int64_t head = 0; head < c.kv_heads; ++head) {
    const int64_t at = (token * c.kv_heads + head) * c.dim;
    const int64_t row = ((page * c.layers + c.layer) * 2 * c.kv_heads + head) * c.page_size + place;
    c.key.read(at, c.dim, x);
    if (c.normed) normalise(x, c.dim, c.key_scale, c.eps, c.key.bfloat16);
    rotate(x, half, cos, sin);
    // A key is a number of the projection's dtype before it is stored in that of the pages.
    if (c.key.bfloat16 && c.pages.stored != Stored::kBfloat16) round_row(x, c.dim);
    c.pages.write(row, c.dim, x);
    c.value.read(at, c.dim, x);
    c.pages.write(row + c.kv_heads * c.page_size, c.dim, x);
  }
}

}  // namespace rtp::rope
