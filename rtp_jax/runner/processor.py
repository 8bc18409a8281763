"""What the processor of the host can do, without jax."""

from pathlib import Path


def cpu_has_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 (AVX512-BF16)."""
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
