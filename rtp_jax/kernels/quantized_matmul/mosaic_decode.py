"""How the Hopper kernel makes bfloat16 of int8 and int4, in few instructions.

Decoding must keep up with memory: at 4.8 TB/s a multiprocessor receives 21 bytes in a cycle and
executes 128 instructions of a thread, so int8 has 6 for each number and int4 has 3.  Three tricks
keep it at 2.5, all overhead of a step of 256 numbers included (counted in the machine code):

- Weights are read as words of 16 bits, which ldmatrix hands out; a word holds P = 2 or 4 numbers,
  and the numbers at one place of all words of a group form a plane.  Each plane is one operand of
  wgmma, or part of one, and `x` is reordered to match.
- 0x4300 is 128 in bfloat16 and its seven lowest bits count on from there, so `word & 0x7f | 0x4300`
  is 128 plus a number.  What the eighth bit stands for is subtracted.
- The constant 0x4300 arrives with the arguments: the assembler joins `and` with `or` into one
  instruction only if one of their operands is in a register.

A zero point is written in the same way, as what follows 128.  Every sum below is of small integers,
which bfloat16 adds exactly.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Int16, UInt8

from rtp_jax.quant.schemes import INT4_OFFSET

BIAS = 0x4300  # 128 in bfloat16
MINUS_16 = 0xC180  # and its eighth bit is set, so that exclusive or halves it


def decode(
    words: Int16[Array, "rows width"],
    plane: int,
    bits: int,
    bias: Int16[Array, ""],
    zero: BFloat16[Array, "rows width"] | None = None,
) -> BFloat16[Array, "rows width"]:
    """Decode one plane of words: int8 as it is, int4 less its offset or zero point.

    `zero` is what `biased` makes of zero points, for every word of a row.
    """
    if plane * bits >= 8:  # exchanging bytes is one instruction, and shifting is four
        words = jax.lax.shift_right_logical(words, jnp.int16(8)) | (words << jnp.int16(8))
    if bits == 8:
        return _float(words, 0x7F, bias) - _float(words, 0x80, bias)
    if plane % 2 == 0:
        subtracted = jnp.bfloat16(128 + INT4_OFFSET) if zero is None else zero
        return _float(words, 0x0F, bias) - subtracted
    # Three bits follow 128 in steps of 16.  The fourth halves -16, as it is part of an exponent.
    low = _float(words, 0x70, bias) * jnp.bfloat16(1 / 16)
    high = (words & jnp.int16(0x80)) ^ (bias ^ jnp.int16(_signed(BIAS ^ MINUS_16)))
    if zero is not None:
        low += jnp.bfloat16(128 + INT4_OFFSET) - zero
    return low + jax.lax.bitcast_convert_type(high, jnp.bfloat16)


def biased(zeros: UInt8[Array, " rows"], bias: Int16[Array, ""]) -> BFloat16[Array, " rows"]:
    """Give 128 plus the zero point of each row."""
    return jax.lax.bitcast_convert_type(zeros.astype(jnp.int16) | bias, jnp.bfloat16)


def _signed(word: int) -> int:
    return word - 2**16 if word >= 2**15 else word


def _float(
    words: Int16[Array, "rows width"], mask: int, bias: Int16[Array, ""]
) -> BFloat16[Array, "rows width"]:
    """Read the bits under a mask as what follows 128, or for the eighth bit as 128 or 256."""
    return jax.lax.bitcast_convert_type((words & jnp.int16(mask)) | bias, jnp.bfloat16)
