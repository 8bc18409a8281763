// What becomes of sums, prepared for a pair of blocks.
#pragma once
#include "matmul.h"
#include "matmul_lines.h"

namespace rtp {

// Sums become numbers: (sum - offset) * factor of the row * scale.
struct Product::Finish {
  Floats scale[2];
  Ints offset[2];
  int64_t outer[2], column[2], count[2];
  Pair pair;
  bool narrow;  // whole lines of bfloat16
};

}  // namespace rtp
