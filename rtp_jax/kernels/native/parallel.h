// Divides work among the threads of XLA's own pool, so that ours and its together equal the cores.
#pragma once
#include <atomic>
#include <cstdint>

#include "xla/ffi/api/ffi.h"

namespace rtp {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Runs `work(item)` for every item in [0, items), on this thread and those of the pool; items are
// taken in order, one at a time, so uneven ones balance.  Returns when all are done.  A helper that
// the pool starts late finds nothing left, but must still be waited for: it reads this frame.
template <class Work>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t items, const Work& work) {
  int64_t helpers = static_cast<int64_t>(pool.num_threads()) - 1;
  if (helpers > items - 1) helpers = items - 1;
  if (helpers <= 0) {
    for (int64_t item = 0; item < items; ++item) work(item);
    return;
  }
  std::atomic<int64_t> next{0}, left{helpers};
  auto run = [&] {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) work(item);
  };
  for (int64_t i = 0; i < helpers; ++i) {
    pool.Schedule([&] {
      run();
      left.fetch_sub(1, std::memory_order_release);
    });
  }
  run();
  while (left.load(std::memory_order_acquire)) relax();
}

}  // namespace rtp
