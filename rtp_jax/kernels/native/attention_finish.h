// The last step of a row: its sums over the weights, to which a sink adds a key without a value.
#pragma once
#include "attention_rows.h"

namespace rtp::paged {

// What sums are multiplied with, one after the other.
struct Share {
  float old, by;
};

inline Share share_of(const Attention& call, const Tile& tile, int64_t head, int64_t row,
                      float high, float total) {
  float old = 1.0f;
  if (call.sinks) {
    float sink = call.sinks[query_head(call, tile, head, row)] * kLog2E;
    float highest = std::max(high, sink);
    old = exp2_of(high - highest);
    total = total * old + exp2_of(sink - highest);
  }
  return {old, total > 0 ? 1.0f / total : 0.0f};
}

}  // namespace rtp::paged
