// Divides work among the threads of XLA's own pool, so that ours and its together equal the cores.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

namespace rtp {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Runs `work(item)` for every item in [0, items), on this thread and those of the pool; items are
// taken in order, one at a time, so uneven ones balance.  Returns when all items are done, not when
// all helpers have run: XLA may run two calls at once on all threads of its pool, and then helpers
// start only after both have returned.  A helper that late touches nothing but the shared counters.
template <class Work>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t items, const Work& work) {
  int64_t helpers = static_cast<int64_t>(pool.num_threads()) - 1;
  if (helpers > items - 1) helpers = items - 1;
  if (helpers <= 0) {
    for (int64_t item = 0; item < items; ++item) work(item);
    return;
  }
  struct Progress {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto progress = std::make_shared<Progress>();
  auto run = [progress, items, &work] {
    int64_t mine = 0;
    for (int64_t item; (item = progress->next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      work(item);
      ++mine;
    }
    progress->done.fetch_add(mine, std::memory_order_release);
  };
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([run] { run(); });
  run();
  while (progress->done.load(std::memory_order_acquire) < items) relax();
}

}  // namespace rtp
