// The largest number of each row, and the first place where it stands.
#include <limits>
#include <vector>

#include "matmul_lines.h"
#include "numbers.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace rtp::maxima {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kLanes = 16, kBlock = 512;  // numbers that are looked at again for the place
constexpr int64_t kPart = 1 << 14;            // numbers, so that threads may share a row
constexpr float kLowest = -std::numeric_limits<float>::infinity();

struct Found {
  float number = kLowest;
  int64_t place = 0;
  bool broken = false;  // there is a NaN
};

// Compares `count` numbers; those past the last whole line one by one.
Found find(const float* from, int64_t count) {
  Found found;
  Ints broken{};
  int64_t block = 0;
  for (int64_t at = 0; at < count; at += kBlock) {
    const int64_t end = at + kBlock < count ? at + kBlock : count;
    Floats top = Floats{} + kLowest;
    int64_t i = at;
    for (; i + kLanes <= end; i += kLanes) {
      Floats x;
      load(x, from + i);
      broken |= x != x;
      top = x > top ? x : top;
    }
    float largest = kLowest;
    for (int lane = 0; lane < kLanes; ++lane) largest = top[lane] > largest ? top[lane] : largest;
    for (; i < end; ++i) {
      found.broken |= from[i] != from[i];
      largest = from[i] > largest ? from[i] : largest;
    }
    if (largest > found.number) found.number = largest, block = at;
  }
  for (int lane = 0; lane < kLanes; ++lane) found.broken |= broken[lane] != 0;
  for (found.place = block; found.place < count && from[found.place] != found.number;) ++found.place;
  if (found.place == count) found.place = 0;  // all are NaN
  return found;
}

// Results: places [rows], and numbers [rows], +infinity for a row that has a NaN.
ffi::Error largest(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x,
                   ffi::Result<ffi::Buffer<ffi::S32>> places,
                   ffi::Result<ffi::Buffer<ffi::F32>> numbers, int64_t columns) {
  auto shape = x.dimensions();
  if (shape.size() != 2 || columns < 1 || columns > shape[1] ||
      places->element_count() != static_cast<size_t>(shape[0]) ||
      numbers->element_count() != static_cast<size_t>(shape[0]))
    return ffi::Error::InvalidArgument("rtp_largest: shapes do not suit each other");
  const int64_t rows = shape[0], parts = (columns + kPart - 1) / kPart;
  std::vector<Found> found(static_cast<size_t>(rows * parts));
  parallel_for(pool, rows * parts, [&](int64_t item) {
    const int64_t row = item / parts, from = item % parts * kPart;
    const int64_t count = columns - from < kPart ? columns - from : kPart;
    found[static_cast<size_t>(item)] = find(x.typed_data() + row * shape[1] + from, count);
  });
  for (int64_t row = 0; row < rows; ++row) {
    Found best;
    for (int64_t part = 0; part < parts; ++part) {
      const Found& one = found[static_cast<size_t>(row * parts + part)];
      best.broken |= one.broken;
      if (one.number > best.number) best.number = one.number, best.place = part * kPart + one.place;
    }
    places->typed_data()[row] = static_cast<int32_t>(best.place);
    numbers->typed_data()[row] =
        best.broken ? std::numeric_limits<float>::infinity() : best.number;
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rtp::maxima

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_largest, rtp::maxima::largest,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Ret<xla::ffi::Buffer<xla::ffi::F32>>()
                                  .Attr<int64_t>("columns"));
#pragma GCC visibility pop
