// Prints what this machine can do at most, for `bench/machine_limits.py`: one line for each limit.
// Reads: the best of several passes over 1 GB a thread on huge pages. Products: registers only.
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PASSES 7
static const size_t kBytes = 1UL << 30;
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

typedef double (*Work)(char* memory);  // returns what it did: bytes or operations
typedef struct {
  Work work;
  char* memory;
  double done;
} Task;
static void* run(void* argument) {
  Task* task = argument;
  task->done = task->work(task->memory);
  return 0;
}

static double best_rate(Work work, int threads, char* memory) {
  double best = 0;
  for (int pass = 0; pass < PASSES; pass++) {
    Task tasks[256];
    pthread_t ids[256];
    double began = now(), done = 0;
    for (int i = 0; i < threads; i++) {
      tasks[i] = (Task){work, memory + (memory ? i * kBytes : 0), 0};
      pthread_create(&ids[i], 0, run, &tasks[i]);
    }
    for (int i = 0; i < threads; i++) {
      pthread_join(ids[i], 0);
      done += tasks[i].done;
    }
    double rate = done / (now() - began) / 1e9;
    if (rate > best) best = rate;
  }
  return best;
}

static double read_all(char* memory) {
  uint64_t sums[8] = {0};
  const uint64_t* words = (const uint64_t*)memory;
  for (size_t i = 0; i < kBytes / 8; i += 32)
    for (int j = 0; j < 8; j++)
      sums[j] ^= words[i + j] ^ words[i + 8 + j] ^ words[i + 16 + j] ^ words[i + 24 + j];
  volatile uint64_t sink = sums[0] ^ sums[1] ^ sums[2] ^ sums[3] ^ sums[4] ^ sums[5] ^ sums[6] ^ sums[7];
  (void)sink;
  return kBytes;
}

#ifdef __AMX_BF16__
static void configure(void) {
  struct {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  } config;
  memset(&config, 0, sizeof config);
  config.palette = 1;
  for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
  __asm__ volatile("ldtilecfg %0" ::"m"(config));  // the intrinsic of GCC 12 forgets its fields
}
#define LOOP(instruction)                                                        \
  configure();                                                                   \
  for (long i = 0; i < 2000000; i++) {                                           \
    instruction(0, 4, 6); instruction(1, 4, 7); instruction(2, 5, 6); instruction(3, 5, 7); \
  }                                                                              \
  _tile_release();
static double bf16_products(char* unused) {
  LOOP(_tile_dpbf16ps);
  return 2000000.0 * 4 * 16 * 16 * 32 * 2;
}
static double int8_products(char* unused) {
  LOOP(_tile_dpbssd);
  return 2000000.0 * 4 * 16 * 16 * 64 * 2;
}
#elif defined(__AVX512BF16__) && defined(__AVX512VNNI__)
static double bf16_products(char* unused) {
  __m512 sums[12] = {0};
  __m512bh a = (__m512bh)_mm512_set1_epi16(1), b = a;
  for (long i = 0; i < 20000000; i++)
    for (int j = 0; j < 12; j++) sums[j] = _mm512_dpbf16_ps(sums[j], a, b);
  volatile float sink = 0;
  for (int j = 0; j < 12; j++) sink += _mm512_reduce_add_ps(sums[j]);
  return 20000000.0 * 12 * 64;
}
static double int8_products(char* unused) {
  __m512i sums[12] = {0}, a = _mm512_set1_epi8(1), b = a;
  for (long i = 0; i < 20000000; i++)
    for (int j = 0; j < 12; j++) sums[j] = _mm512_dpbusd_epi32(sums[j], a, b);
  volatile int sink = 0;
  for (int j = 0; j < 12; j++) sink += _mm512_reduce_add_epi32(sums[j]);
  return 20000000.0 * 12 * 128;
}
#endif

int main(void) {
  int cores = sysconf(_SC_NPROCESSORS_ONLN);
  char* memory = mmap(0, cores * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  madvise(memory, cores * kBytes, MADV_HUGEPAGE);
  memset(memory, 1, cores * kBytes);
  for (int threads = 1; threads <= cores; threads += cores > 1 ? cores - 1 : 1)
    printf("read_gb_s_%d %.2f\n", threads, best_rate(read_all, threads, memory));
#ifdef __AMX_BF16__
  syscall(SYS_arch_prctl, 0x1023, 18);
#endif
#if defined(__AMX_BF16__) || (defined(__AVX512BF16__) && defined(__AVX512VNNI__))
  for (int threads = 1; threads <= cores; threads += cores > 1 ? cores - 1 : 1) {
    printf("bf16_gflops_%d %.0f\n", threads, best_rate(bf16_products, threads, 0));
    printf("int8_gops_%d %.0f\n", threads, best_rate(int8_products, threads, 0));
  }
#endif
  return 0;
}
