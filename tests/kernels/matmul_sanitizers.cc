// Random products with packed weights in memory of exactly their size, against plain loops in
// double.  Built with sanitizers by test_native_sanitizers.py; says what is wrong, returns 1.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "matmul.h"
#include "numbers.h"

extern "C" int rtp_prepare();
extern "C" void rtp_pack_rows(int64_t scheme, const void* rows, int64_t is_bfloat16, int64_t outer,
                              int64_t inner, uint8_t* out);
extern "C" void rtp_pack_values(int64_t scheme, const uint8_t* values, const float* scales,
                                const uint8_t* zeros, int64_t outer, int64_t inner, uint8_t* out);
extern "C" void rtp_unpack_rows(int64_t scheme, const uint8_t* blocks, int64_t outer,
                                int64_t inner, float* out);

namespace {

using namespace rtp;
std::mt19937 source(1);

int64_t below(int64_t end) { return std::uniform_int_distribution<int64_t>(0, end - 1)(source); }

// Numbers whose memory ends with the last of them.
struct Numbers {
  Numbers(int64_t count, bool bfloat16)
      : count(count), bfloat16(bfloat16), data(new uint8_t[count * (bfloat16 ? 2 : 4)]) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) {
      float number = normal(source);
      uint16_t half = to_bf16(number);
      if (bfloat16) memcpy(data.get() + i * 2, &half, 2);
      else memcpy(data.get() + i * 4, &number, 4);
    }
  }
  float operator[](int64_t i) const {
    float number;
    widen(data.get() + i * (bfloat16 ? 2 : 4), bfloat16, 1, &number);
    return number;
  }
  Rows rows() { return {data.get(), bfloat16}; }
  int64_t count;
  bool bfloat16;
  std::unique_ptr<uint8_t[]> data;
};

struct Weight {
  Weight(Scheme scheme, int64_t outer, int64_t inner)
      : blocks(new uint8_t[divided_up(outer, kBlockRows) * block_bytes(scheme, inner)]),
        numbers(static_cast<size_t>(outer * inner)) {
    auto number = static_cast<int64_t>(scheme);
    if (has_zeros(scheme)) {
      int64_t groups = outer * inner / group_of(scheme, inner);
      std::vector<uint8_t> values(static_cast<size_t>(outer * inner / 2)), zeros(static_cast<size_t>(groups));
      for (auto& pair : values) pair = static_cast<uint8_t>(below(256));
      for (auto& zero : zeros) zero = static_cast<uint8_t>(below(16));
      Numbers drawn(groups, false);
      std::vector<float> scales;
      for (int64_t i = 0; i < groups; ++i) scales.push_back(drawn[i] / 8);
      rtp_pack_values(number, values.data(), scales.data(), zeros.data(), outer, inner, blocks.get());
      rtp_unpack_rows(number, blocks.get(), outer, inner, numbers.data());
      return;
    }
    bool plain = scheme == Scheme::kFloat32 || scheme == Scheme::kBfloat16;
    Numbers rows(outer * inner, plain ? scheme == Scheme::kBfloat16 : below(2) == 0);
    rtp_pack_rows(number, rows.data.get(), rows.bfloat16, outer, inner, blocks.get());
    rtp_unpack_rows(number, blocks.get(), outer, inner, numbers.data());
  }
  std::unique_ptr<uint8_t[]> blocks;
  std::vector<float> numbers;
};

// As XLA does: items in any order, on two threads.
void run(const Linear& call) {
  Product product(call, 2);
  for (int64_t item = 0; item < product.prepare_items(); ++item) product.prepare(item);
  auto every_second = [&](int64_t item) {
    for (; item < product.multiply_items(); item += 2) product.multiply(item);
  };
  std::thread other(every_second, 1);
  every_second(0);
  other.join();
}

bool is_right(Scheme scheme, Epilogue epilogue) {
  int64_t rows = below(3) ? 1 + below(20) : 40 + below(90), total = rows + below(3);
  int64_t inner = 1 + below(700);
  if (is_grouped(scheme)) inner = group_of(scheme, kCell) * (1 + below(11));
  if (below(4) == 0) rows = 0;
  Numbers x(total * inner, below(2) == 0);
  Linear call{};
  call.scheme = scheme, call.epilogue = epilogue, call.inner = inner;
  call.rows = rows, call.total = total, call.x = x.rows();
  call.weights = epilogue == Epilogue::kSiluMul ? 2 : epilogue == Epilogue::kAdd ? 1 : 3;
  std::vector<Weight> weights;
  std::vector<Numbers> outputs;
  int64_t outer = 1 + below(70);
  for (int64_t i = 0; i < call.weights; ++i) {
    if (epilogue == Epilogue::kNone) outer = 1 + below(70);
    weights.emplace_back(scheme, outer, inner);
    outputs.emplace_back(total * outer, below(2) == 0);
    call.blocks[i] = weights.back().blocks.get();
    call.outer[i] = outer;
    call.outputs[i] = outputs.back().rows();
  }
  Numbers residual(total * outer, below(2) == 0);
  call.residual = residual.rows();
  run(call);
  int64_t results = epilogue == Epilogue::kSiluMul ? 1 : call.weights;
  bool rounds = scheme == Scheme::kInt8Dynamic || is_int4(scheme);
  for (int64_t i = 0; i < results; ++i)
    for (int64_t m = 0; m < total; ++m)
      for (int64_t o = 0; o < call.outer[i]; ++o) {
        double sum[2] = {}, size[2] = {1, 1};
        for (int64_t w = 0; m < rows && w < (epilogue == Epilogue::kSiluMul ? 2 : 1); ++w)
          for (int64_t k = 0; k < inner; ++k) {
            double term = double(x[m * inner + k]) * weights[i + w].numbers[o * inner + k];
            sum[w] += term;
            size[w] += std::abs(term);
          }
        double wanted = sum[0], bound = size[0];
        if (epilogue == Epilogue::kSiluMul) {
          wanted = sum[0] / (1 + std::exp(-sum[0])) * sum[1];
          bound = size[0] * size[1];
        }
        if (epilogue == Epilogue::kAdd && m < rows) wanted += residual[m * outer + o];
        // int8 rounds x by up to 1/254 of its largest, which may be 5 times a usual one; float8 by
        // 1/16 of itself.
        bound *= is_fp8(scheme) ? 0.07 : rounds ? 0.03 : outputs[i].bfloat16 ? 0.01 : 1e-4;
        double got = outputs[i][m * call.outer[i] + o];
        if (std::abs(got - wanted) <= bound) continue;
        printf("scheme %d epilogue %d rows %d of %d inner %d: [%d][%d, %d] is %g, not %g\n",
               int(scheme), int(epilogue), int(rows), int(total), int(inner), int(i), int(m),
               int(o), got, wanted);
        return false;
      }
  return true;
}

}  // namespace

int main() {
  if (rtp_prepare()) return 1;
  for (int round = 0; round < 6; ++round)
    for (int scheme = 0; scheme < 12; ++scheme)
      for (int epilogue = 0; epilogue < 3; ++epilogue)
        if (!is_right(static_cast<Scheme>(scheme), static_cast<Epilogue>(epilogue))) return 1;
  puts("fine");
}
