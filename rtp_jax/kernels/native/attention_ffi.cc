// How XLA calls paged attention.
#include <cstring>
#include <vector>

#include "attention.h"
#include "parallel.h"
#include "stored_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace rtp::paged {
namespace {
namespace ffi = xla::ffi;

using Ints1 = ffi::Buffer<ffi::S32, 1>;
using Ints2 = ffi::Buffer<ffi::S32, 2>;
using Scalar = ffi::Buffer<ffi::S32, 0>;

ffi::Error run(ffi::ThreadPool pool, ffi::AnyBuffer query, ffi::AnyBuffer pages,
               ffi::AnyBuffer scales, ffi::AnyBuffer sinks, Scalar layer, Scalar num_tokens,
               Scalar window, Ints1 positions, Ints2 page_table, Ints1 start,
               Ints1 count, ffi::Result<ffi::AnyBuffer> out, float scale, float soft_cap) {
  auto shape = query.dimensions(), stored = pages.dimensions();
  if (shape.size() != 3 || stored.size() != 6 || shape[2] != stored[5] || shape[2] > kMaxHeadDim ||
      stored[3] == 0 || shape[1] % stored[3] != 0 || positions.dimensions()[0] != shape[0] ||
      start.dimensions()[0] != page_table.dimensions()[0] ||
      count.dimensions()[0] != page_table.dimensions()[0] || !(scale > 0))
    return ffi::Error::InvalidArgument("rtp_attention: shapes do not fit each other");
  Attention call = {};
  if (!find_stored(pages.element_type(), call.stored))
    return ffi::Error::InvalidArgument("rtp_attention: pages of another dtype");
  if (query.element_type() != ffi::BF16 && query.element_type() != ffi::F32)
    return ffi::Error::InvalidArgument("rtp_attention: a query of another dtype");
  call.bfloat16 = query.element_type() == ffi::BF16;
  call.query = query.untyped_data();
  call.out = out->untyped_data();
  call.pages = pages.untyped_data();
  call.scales = scales.element_count() ? scales.reinterpret_data<float>() : nullptr;
  call.sinks = sinks.element_count() ? sinks.reinterpret_data<float>() : nullptr;
  call.positions = positions.typed_data();
  call.page_table = page_table.typed_data();
  call.query_start = start.typed_data();
  call.query_count = count.typed_data();
  call.tokens = shape[0], call.heads = shape[1], call.head_dim = shape[2];
  call.num_pages = stored[0], call.layers = stored[1];
  call.kv_heads = stored[3], call.page_size = stored[4];
  call.sequences = page_table.dimensions()[0], call.width = page_table.dimensions()[1];
  call.layer = std::min<int64_t>(std::max(0, *layer.typed_data()), call.layers - 1);
  call.num_tokens = *num_tokens.typed_data();
  call.window = *window.typed_data();
  call.scale = scale, call.soft_cap = soft_cap;

  const Plan work = plan(call, pool.num_threads());
  parallel_for(pool, work.tiles.size(), [&](int64_t item) { attend(call, work, item); });
  parallel_for(pool, work.joins.size(), [&](int64_t item) { join(call, work, item); });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rtp::paged

// clang-format off
#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_attention, rtp::paged::run,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<rtp::paged::Scalar>()
                                  .Arg<rtp::paged::Scalar>()
                                  .Arg<rtp::paged::Scalar>()
                                  .Arg<rtp::paged::Ints1>()
                                  .Arg<rtp::paged::Ints2>()
                                  .Arg<rtp::paged::Ints1>()
                                  .Arg<rtp::paged::Ints1>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<float>("soft_cap"));
#pragma GCC visibility pop
