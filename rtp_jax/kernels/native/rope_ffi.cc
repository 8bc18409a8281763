// What XLA calls around attention: the norm of a stream, and everything between the projections of
// queries, keys and values and the pages.
#include "parallel.h"
#include "rope.h"
#include "stored_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace rtp::rope {
namespace {

namespace ffi = xla::ffi;
using Scalar = ffi::Buffer<ffi::S32, 0>;
using Ints1 = ffi::Buffer<ffi::S32, 1>;
using Ints2 = ffi::Buffer<ffi::S32, 2>;
using Floats2 = ffi::Buffer<ffi::F32, 2>;

constexpr int64_t kTokens = 8;  // of a piece of work

Numbers numbers_of(const ffi::AnyBuffer& buffer) {
  return {static_cast<char*>(buffer.untyped_data()), buffer.element_type() != ffi::F32};
}

bool is_number(const ffi::AnyBuffer& x) {
  return x.element_type() == ffi::F32 || x.element_type() == ffi::BF16;
}

int64_t bounded(int32_t x, int64_t high) { return x < 0 ? 0 : x > high ? high : x; }

// The factors of a norm: those of `layer`, if there are some for each layer.
const char* factors_of(const ffi::AnyBuffer& scale, int64_t layer, int64_t count) {
  const int64_t layers = scale.element_count() / count;
  const int64_t bytes = scale.element_type() == ffi::F32 ? 4 : 2;
  return static_cast<const char*>(scale.untyped_data()) +
         (layers > 1 ? bounded(static_cast<int32_t>(layer), layers - 1) : 0) * count * bytes;
}

ffi::Error rms_norm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer scale, Scalar layer,
                    Scalar rows, ffi::Result<ffi::AnyBuffer> out, float eps) {
  auto shape = x.dimensions();
  if (!is_number(x) || !is_number(scale) || shape.size() != 2 ||
      out->element_type() != x.element_type() || shape[1] == 0 ||
      scale.element_count() % shape[1] != 0 || scale.element_count() == 0)
    return ffi::Error::InvalidArgument("rtp_rms_norm: shapes do not fit each other");
  const int64_t total = shape[0], width = shape[1], live = bounded(*rows.typed_data(), total);
  const Numbers from = numbers_of(x), to = numbers_of(*out);
  const bool wide = scale.element_type() == ffi::F32;
  const char* factors = factors_of(scale, *layer.typed_data(), width);
  parallel_for(pool, (live + kTokens - 1) / kTokens, [&](int64_t piece) {
    thread_local Scratch scratch;
    float* row = reinterpret_cast<float*>(scratch.get(2 * width * 4));
    widen(factors, !wide, width, row + width);
    for (int64_t t = piece * kTokens; t < live && t < (piece + 1) * kTokens; ++t) {
      from.read(t * width, width, row);
      normalise(row, width, row + width, eps, false);
      to.write(t * width, width, row);
    }
  });
  to.clear(live * width, (total - live) * width);
  return ffi::Error::Success();
}

ffi::Error rope_kv(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer key,
                   ffi::AnyBuffer value, Floats2 cos, Floats2 sin, ffi::AnyBuffer query_norm,
                   ffi::AnyBuffer key_norm, ffi::AnyBuffer pages, ffi::AnyBuffer scales,
                   Scalar layer, Scalar norm_layer, Scalar num_tokens, Ints1 positions,
                   Ints1 sequence_of, Ints2 page_table, ffi::Result<ffi::AnyBuffer> rotated,
                   ffi::Result<ffi::AnyBuffer> written, ffi::Result<ffi::AnyBuffer> scaled,
                   float eps) {
  auto shape = rotated->dimensions(), stored = pages.dimensions();
  if (shape.size() != 3 || stored.size() != 6)
    return ffi::Error::InvalidArgument("rtp_rope_kv: shapes do not fit each other");
  const int64_t tokens = shape[0], heads = shape[1], dim = shape[2], kv_heads = stored[3];
  const int64_t total = static_cast<int64_t>(query.element_count());
  const int64_t kv_total = tokens * kv_heads * dim;
  Stored kind = Stored::kFloat32;
  if (!find_stored(pages.element_type(), kind))
    return ffi::Error::InvalidArgument("rtp_rope_kv: pages of another dtype");
  const size_t factors = bytes_of(kind) == 1 ? pages.element_count() / std::max<size_t>(dim, 1) : 0;
  if (!is_number(query) || key.element_type() != query.element_type() ||
      value.element_type() != query.element_type() || scales.element_type() != ffi::F32 ||
      scales.element_count() != factors || scaled->element_count() != factors ||
      rotated->element_type() != query.element_type() || dim != stored[5] || dim % 2 != 0 ||
      dim > kMaxHeadDim || total != tokens * heads * dim ||
      static_cast<int64_t>(key.element_count()) != kv_total ||
      static_cast<int64_t>(value.element_count()) != kv_total ||
      static_cast<int64_t>(cos.element_count()) != tokens * dim / 2 ||
      static_cast<int64_t>(sin.element_count()) != tokens * dim / 2 ||
      static_cast<int64_t>(positions.element_count()) != tokens ||
      static_cast<int64_t>(sequence_of.element_count()) != tokens)
    return ffi::Error::InvalidArgument("rtp_rope_kv: shapes or dtypes do not fit each other");
  if (written->untyped_data() != pages.untyped_data() ||
      (factors && scaled->untyped_data() != scales.untyped_data()))
    return ffi::Error::Internal("rtp_rope_kv: the pages were copied");
  const Pages to{static_cast<char*>(written->untyped_data()),
                 factors ? scaled->reinterpret_data<float>() : nullptr, kind};
  Call c{numbers_of(query), numbers_of(key), numbers_of(value), numbers_of(*rotated), to,
         cos.typed_data(), sin.typed_data(), {}, {}, query_norm.element_count() > 0, eps,
         heads, kv_heads, dim, stored[1], stored[4], stored[0],
         bounded(*layer.typed_data(), stored[1] - 1)};
  if (c.normed) {
    if (query_norm.element_count() % dim || key_norm.element_count() % dim ||
        key_norm.element_count() == 0 || !is_number(query_norm) || !is_number(key_norm))
      return ffi::Error::InvalidArgument("rtp_rope_kv: norms do not fit the heads");
    const int64_t row = *norm_layer.typed_data();
    widen(factors_of(query_norm, row, dim), query_norm.element_type() != ffi::F32, dim,
          c.query_scale);
    widen(factors_of(key_norm, row, dim), key_norm.element_type() != ffi::F32, dim, c.key_scale);
  }
  const int64_t live = bounded(*num_tokens.typed_data(), tokens);
  const int64_t sequences = page_table.dimensions()[0], width = page_table.dimensions()[1];
  parallel_for(pool, (live + kTokens - 1) / kTokens, [&](int64_t piece) {
    for (int64_t t = piece * kTokens; t < live && t < (piece + 1) * kTokens; ++t) {
      const int64_t sequence = bounded(sequence_of.typed_data()[t], sequences - 1);
      const int64_t position = positions.typed_data()[t] < 0 ? 0 : positions.typed_data()[t];
      const int64_t index = bounded(static_cast<int32_t>(position / c.page_size), width - 1);
      const int32_t page = page_table.typed_data()[sequence * width + index];
      turn_token(c, t, bounded(page, c.num_pages - 1), position % c.page_size);
    }
  });
  c.out.clear(live * heads * dim, (tokens - live) * heads * dim);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rtp::rope

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_rms_norm, rtp::rope::rms_norm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rtp::rope::Scalar>()
                                  .Arg<rtp::rope::Scalar>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("eps"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_rope_kv, rtp::rope::rope_kv,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rtp::rope::Floats2>()
                                  .Arg<rtp::rope::Floats2>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rtp::rope::Scalar>()
                                  .Arg<rtp::rope::Scalar>()
                                  .Arg<rtp::rope::Scalar>()
                                  .Arg<rtp::rope::Ints1>()
                                  .Arg<rtp::rope::Ints1>()
                                  .Arg<rtp::rope::Ints2>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("eps"));
#pragma GCC visibility pop
