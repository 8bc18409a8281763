// Random calls of native attention in memory of exactly their size, against plain loops in double.
// Built with sanitizers by test_native_sanitizers.py; says what is wrong and returns 1.
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "attention.h"
#include "attention_rows.h"
#include "rope.h"

extern "C" int rtp_prepare();

namespace {

using namespace rtp;
using namespace rtp::paged;
std::mt19937 source(1);

int64_t below(int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(source); }
float normal() { return std::normal_distribution<float>()(source); }

// Bytes that end where the memory ends, so that a sanitizer sees the first one too many.
struct Bytes {
  Bytes(int64_t count, Stored stored) : data(new char[count * bytes_of(stored)]), stored(stored) {
    for (int64_t i = 0; i < count; ++i) set(i, normal());
  }
  void set(int64_t i, float x) {
    if (stored == Stored::kFloat32) memcpy(data.get() + i * 4, &x, 4);
    uint16_t half = to_bf16(x);
    if (stored == Stored::kBfloat16) memcpy(data.get() + i * 2, &half, 2);
    if (stored == Stored::kInt8) data[i] = static_cast<char>(std::lrint(x * 20));
    if (stored == Stored::kFloat8) data[i] = static_cast<char>(below(0x78) | below(2) << 7);
  }
  double at(int64_t i) const {
    float x;
    widen_row(stored, data.get() + i * bytes_of(stored), 1, &x);
    return x;
  }
  std::unique_ptr<char[]> data;
  Stored stored;
};

// The result of one head of one token.
std::vector<double> exact(const Attention& c, const Bytes& query, const Bytes& pages,
                          int64_t sequence, int64_t token, int64_t head) {
  const int64_t kv_head = head / (c.heads / c.kv_heads), position = c.positions[token];
  std::vector<double> mixed(c.head_dim, 0.0);
  double total = c.sinks ? std::exp(c.sinks[head]) : 0.0;
  for (int64_t p = std::max<int64_t>(0, position - c.window + 1); p <= position; ++p) {
    int64_t row = c.page_table[sequence * c.width + p / c.page_size];
    row = ((row * c.layers + c.layer) * 2 * c.kv_heads + kv_head) * c.page_size + p % c.page_size;
    const int64_t value = row + c.kv_heads * c.page_size;
    double score = 0;
    for (int64_t d = 0; d < c.head_dim; ++d)
      score += query.at((token * c.heads + head) * c.head_dim + d) * pages.at(row * c.head_dim + d);
    score *= c.scale * (c.scales ? c.scales[row] : 1.0f);
    if (c.soft_cap > 0) score = c.soft_cap * std::tanh(score / c.soft_cap);
    const double weight = std::exp(score);
    total += weight;
    for (int64_t d = 0; d < c.head_dim; ++d)
      mixed[d] += weight * pages.at(value * c.head_dim + d) * (c.scales ? c.scales[value] : 1.0f);
  }
  for (double& x : mixed) x /= total;
  return mixed;
}

bool attention_is_right(Stored stored, bool bfloat16, int64_t threads) {
  Attention c{};
  c.kv_heads = 1 + below(3), c.heads = c.kv_heads * (1 + below(8)), c.head_dim = 1 + below(140);
  c.page_size = 1 + below(20), c.layers = 2, c.layer = 1, c.sequences = 4;
  c.scale = 0.5f / std::sqrt(static_cast<float>(c.head_dim)), c.bfloat16 = bfloat16;
  c.stored = stored, c.soft_cap = below(3) ? 0.0f : 2.0f;
  c.window = below(3) ? std::numeric_limits<int32_t>::max() : 1 + below(90);
  std::vector<int32_t> positions, start(4), count(4), table;
  int64_t longest = 0;
  for (int64_t s = 0; s < 4; ++s) {
    const int64_t length = 1 + below(s == 0 ? 2200 : 150);
    count[s] = static_cast<int32_t>(s % 2 ? 1 + below(std::min<int64_t>(length, 40)) : 1);
    start[s] = static_cast<int32_t>(positions.size());
    for (int64_t p = length - count[s]; p < length; ++p)
      positions.push_back(static_cast<int32_t>(p));
    longest = std::max(longest, length);
  }
  positions.push_back(0);  // padding
  c.tokens = static_cast<int64_t>(positions.size()), c.num_tokens = c.tokens - 1;
  c.width = (longest - 1) / c.page_size + 1, c.num_pages = 7;
  for (int64_t i = 0; i < 4 * c.width; ++i) table.push_back(static_cast<int32_t>(below(7)));
  const int64_t rows = c.num_pages * c.layers * 2 * c.kv_heads * c.page_size;
  const bool scaled = bytes_of(stored) == 1;
  const Stored kind = bfloat16 ? Stored::kBfloat16 : Stored::kFloat32;
  const int64_t numbers = c.tokens * c.heads * c.head_dim;
  Bytes query(numbers, kind), out(numbers, kind), pages(rows * c.head_dim, stored);
  std::vector<float> scales(rows), sinks(c.heads);
  for (float& x : scales) x = 0.01f * (1 + static_cast<float>(below(5)));
  for (float& x : sinks) x = normal();
  c.query = query.data.get(), c.out = out.data.get(), c.pages = pages.data.get();
  c.scales = scaled ? scales.data() : nullptr, c.sinks = below(2) ? sinks.data() : nullptr;
  c.positions = positions.data(), c.page_table = table.data();
  c.query_start = start.data(), c.query_count = count.data();

  const Plan work = plan(c, threads);
  for (size_t i = 0; i < work.tiles.size(); ++i) attend(c, work, static_cast<int64_t>(i));
  for (size_t i = 0; i < work.joins.size(); ++i) join(c, work, static_cast<int64_t>(i));
  for (int64_t s = 0; s < 4; ++s)
    for (int64_t token : {start[s], start[s] + count[s] - 1}) {
      const int64_t head = below(c.heads), at = (token * c.heads + head) * c.head_dim;
      const std::vector<double> right = exact(c, query, pages, s, token, head);
      for (int64_t d = 0; d < c.head_dim; ++d)  // bfloat16 has 8 bits, in weights and results
        if (!(std::abs(out.at(at + d) - right[d]) <= (bfloat16 ? 3e-2 : 2e-5) * 5)) {
          printf("attention: token %ld is %g, not %g\n", token, out.at(at + d), right[d]);
          return false;
        }
    }
  for (int64_t i = numbers - c.heads * c.head_dim; i < numbers; ++i)
    if (out.at(i) != 0) return puts("attention: padding is not zero"), false;
  return true;
}

bool rope_is_right(bool bfloat16, Stored stored) {
  const int64_t dim = 2 * (1 + below(64)), heads = 4, kv_heads = 2, tokens = 3, page_size = 2;
  const Stored kind = bfloat16 ? Stored::kBfloat16 : Stored::kFloat32;
  Bytes query(tokens * heads * dim, kind), key(tokens * kv_heads * dim, kind),
      value(tokens * kv_heads * dim, kind), out(tokens * heads * dim, kind),
      pages(2 * 2 * kv_heads * page_size * dim, stored);
  std::vector<float> scales(bytes_of(stored) == 1 ? 2 * 2 * kv_heads * page_size : 0);
  std::vector<float> cos(tokens * dim / 2, 0.0f), sin(tokens * dim / 2, 1.0f);  // a right angle
  auto of = [&](const Bytes& x) { return rope::Numbers{x.data.get(), bfloat16}; };
  rope::Call c{of(query), of(key), of(value), of(out),
               {pages.data.get(), scales.empty() ? nullptr : scales.data(), stored},
               cos.data(), sin.data(), {}, {}, false, 0.0f, heads, kv_heads, dim, 1, page_size, 2, 0};
  for (int64_t t = 0; t < tokens; ++t) rope::turn_token(c, t, 1, t % page_size);
  const int64_t last = (tokens * heads - 1) * dim;  // the last head: (low, high) -> (-high, low)
  for (int64_t i = 0; i < dim / 2; ++i)
    if (out.at(last + i) != -query.at(last + dim / 2 + i) ||
        out.at(last + dim / 2 + i) != query.at(last + i))
      return puts("rope: not a right angle"), false;
  const int64_t row = ((2 + 1) * kv_heads + kv_heads - 1) * page_size;  // of token 2
  const double scale = scales.empty() ? 1.0 : scales[row];
  for (int64_t i = 0; i < dim; ++i) {
    const double right = value.at((tokens * kv_heads - 1) * dim + i);
    double far = 0;  // half a step
    if (stored == Stored::kBfloat16) far = std::abs(right) / 256;
    if (stored == Stored::kInt8) far = scale * 0.5001;
    if (stored == Stored::kFloat8) far = std::abs(right) / 15.9 + scale / 1023;
    if (!(std::abs(pages.at(row * dim + i) * scale - right) <= far))
      return puts("rope: a value is not in its page"), false;
  }
  return true;
}

}  // namespace

int main() {
  if (rtp_prepare()) return puts("the tile registers are not granted"), 1;
  for (int round = 0; round < 12; ++round)
    for (Stored stored : {Stored::kFloat32, Stored::kBfloat16, Stored::kInt8, Stored::kFloat8})
      for (bool bfloat16 : {false, true})
        if (!attention_is_right(stored, bfloat16, round % 2 ? 1 : 16)) return 1;
  for (int round = 0; round < 20; ++round)
    for (Stored stored : {Stored::kFloat32, Stored::kBfloat16, Stored::kInt8, Stored::kFloat8})
      if (!rope_is_right(round % 2, stored)) return 1;
  puts("fine");
  return 0;
}
