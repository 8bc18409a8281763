/* gcc 12 takes it that ldtilecfg reads 8 bytes of the tile configuration.  It then drops the stores
   to the other 56, and llama.cpp's AMX kernels end with a general protection fault.  This header,
   included before all others, says how much is read. */
#if defined(__cplusplus) && defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#undef _tile_loadconfig
#define _tile_loadconfig(config) \
  __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
