// How an array of KV pages holds numbers, by the dtype that XLA knows it as.
#pragma once
#include "stored.h"
#include "xla/ffi/api/ffi.h"

namespace rtp {

// Finds out, or returns false for a dtype that no pages have.
inline bool find_stored(xla::ffi::DataType dtype, Stored& stored) {
  switch (dtype) {
    case xla::ffi::F32: stored = Stored::kFloat32; return true;
    case xla::ffi::U16: stored = Stored::kBfloat16; return true;
    case xla::ffi::S8: stored = Stored::kInt8; return true;
    case xla::ffi::U8: stored = Stored::kFloat8; return true;
    default: return false;
  }
}

}  // namespace rtp
