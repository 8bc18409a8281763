// What must be asked of the operating system before the kernels may run.
#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Returns 0 when every instruction of this library may be used by all threads of the process.
extern "C" __attribute__((visibility("default"))) int rtp_prepare() {
#if defined(__AMX_TILE__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 ? 0 : 1;
#else
  return 0;
#endif
}
