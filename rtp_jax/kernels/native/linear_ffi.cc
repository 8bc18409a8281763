// What XLA calls: products with packed weights, and rows of a packed table.
#include "matmul.h"
#include "numbers.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace rtp {
namespace {

namespace ffi = xla::ffi;

ffi::Error refused(const char* why) { return ffi::Error::InvalidArgument(why); }

bool is_number(const ffi::AnyBuffer& buffer) {
  return buffer.element_type() == ffi::F32 || buffer.element_type() == ffi::BF16;
}

Rows rows_of(const ffi::AnyBuffer& buffer) {
  return {buffer.untyped_data(), buffer.element_type() == ffi::BF16};
}

bool is_table(const ffi::AnyBuffer& blocks, Scheme scheme, int64_t inner) {
  auto shape = blocks.dimensions();
  return blocks.element_type() == ffi::U8 && shape.size() == 3 &&
         shape[2] == block_bytes(scheme, inner);
}

// Operands: x [rows, inner], layer, rows that matter, residual if it is added, packed weights.
ffi::Error linear(ffi::ThreadPool pool, ffi::RemainingArgs operands, ffi::RemainingRets results,
                  int64_t scheme, int64_t epilogue) {
  Linear call{};
  call.scheme = static_cast<Scheme>(scheme);
  call.epilogue = static_cast<Epilogue>(epilogue);
  size_t first = call.epilogue == Epilogue::kAdd ? 4 : 3;
  if (operands.size() <= first) return refused("rtp_linear: there is no weight");
  call.weights = static_cast<int64_t>(operands.size() - first);
  size_t outputs = call.epilogue == Epilogue::kSiluMul ? 1 : operands.size() - first;
  if (call.weights > kMaxWeights || results.size() != outputs ||
      (call.epilogue == Epilogue::kAdd && call.weights != 1) ||
      (call.epilogue == Epilogue::kSiluMul && call.weights != 2))
    return refused("rtp_linear: the number of weights does not suit");
  auto x = *operands.get<ffi::AnyBuffer>(0);
  if (!is_number(x) || x.dimensions().size() != 2) return refused("rtp_linear: what is x?");
  call.x = rows_of(x);
  call.total = x.dimensions()[0];
  call.inner = x.dimensions()[1];
  int64_t layer = *static_cast<int32_t*>(operands.get<ffi::AnyBuffer>(1)->untyped_data());
  int64_t rows = *static_cast<int32_t*>(operands.get<ffi::AnyBuffer>(2)->untyped_data());
  call.rows = rows < 0 ? 0 : rows > call.total ? call.total : rows;
  if (first == 4) call.residual = rows_of(*operands.get<ffi::AnyBuffer>(3));
  for (int64_t i = 0; i < call.weights; ++i) {
    auto blocks = *operands.get<ffi::AnyBuffer>(first + static_cast<size_t>(i));
    size_t result = static_cast<size_t>(i) < outputs ? static_cast<size_t>(i) : outputs - 1;
    auto out = **results.get<ffi::AnyBuffer>(result);
    if (!is_table(blocks, call.scheme, call.inner)) return refused("rtp_linear: what are weights?");
    auto shape = blocks.dimensions();
    call.outer[i] = out.dimensions()[1];
    if (!is_number(out) || out.dimensions()[0] != call.total ||
        shape[1] != divided_up(call.outer[i], kBlockRows))
      return refused("rtp_linear: a result does not suit its weight");
    int64_t chosen = layer < 0 ? 0 : layer >= shape[0] ? shape[0] - 1 : layer;  // as XLA clamps
    call.blocks[i] = static_cast<uint8_t*>(blocks.untyped_data()) + chosen * shape[1] * shape[2];
    call.outputs[i] = rows_of(out);
  }
  Product product(call, static_cast<int64_t>(pool.num_threads()));
  auto prepare = [&](int64_t item) { product.prepare(item); };
  if (product.prepares_much()) {
    parallel_for(pool, product.prepare_items(), prepare);
  } else {
    for (int64_t item = 0; item < product.prepare_items(); ++item) prepare(item);
  }
  parallel_for(pool, product.multiply_items(), [&](int64_t item) { product.multiply(item); });
  return ffi::Error::Success();
}

// Rows of a packed table [1, blocks, bytes] by ids [tokens]; ids beyond it are clamped, as XLA does.
ffi::Error embed(ffi::ThreadPool pool, ffi::Buffer<ffi::S32> ids, ffi::AnyBuffer table,
                 ffi::Result<ffi::AnyBuffer> out, int64_t scheme_id, int64_t outer) {
  auto scheme = static_cast<Scheme>(scheme_id);
  int64_t tokens = out->dimensions()[0], inner = out->dimensions()[1];
  if (!is_table(table, scheme, inner) || !is_number(*out) || ids.dimensions()[0] != tokens)
    return refused("rtp_embed: the table does not suit the result");
  const auto* blocks = static_cast<uint8_t*>(table.untyped_data());
  Rows rows = rows_of(*out);
  constexpr int64_t kTokens = 16;
  parallel_for(pool, divided_up(tokens, kTokens), [&](int64_t item) {
    thread_local Scratch scratch;
    auto* numbers = reinterpret_cast<float*>(scratch.get(inner * 4));
    for (int64_t t = item * kTokens; t < tokens && t < (item + 1) * kTokens; ++t) {
      int64_t id = ids.typed_data()[t];
      unpack_row(scheme, blocks, id < 0 ? 0 : id < outer ? id : outer - 1, inner, numbers);
      if (rows.bfloat16) {
        auto* halves = static_cast<uint16_t*>(rows.data) + t * inner;
        for (int64_t i = 0; i < inner; ++i) halves[i] = to_bf16(numbers[i]);
      } else {
        memcpy(static_cast<float*>(rows.data) + t * inner, numbers, static_cast<size_t>(inner) * 4);
      }
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace rtp

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_linear, rtp::linear,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<int64_t>("scheme")
                                  .Attr<int64_t>("epilogue"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_embed, rtp::embed,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::Buffer<xla::ffi::S32>>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("scheme")
                                  .Attr<int64_t>("outer"));
#pragma GCC visibility pop
