// A result that nobody writes: memory as the allocator gave it, which the caller then zeroes in its
// own way.
#include "xla/ffi/api/ffi.h"

namespace rtp::unwritten {
namespace {

xla::ffi::Error leave(xla::ffi::Result<xla::ffi::AnyBuffer>) { return xla::ffi::Error::Success(); }

}  // namespace
}  // namespace rtp::unwritten

#pragma GCC visibility push(default)
XLA_FFI_DEFINE_HANDLER_SYMBOL(rtp_unwritten, rtp::unwritten::leave,
                              xla::ffi::Ffi::Bind().Ret<xla::ffi::AnyBuffer>());
#pragma GCC visibility pop
