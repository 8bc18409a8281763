"""Every scheme that a product with weights can meet, by name: what is compiled, timed and tested.

Checkpoints bring int4 in groups of 128, 64 and 32 numbers; each is a kernel of its own.
"""

from rtp_jax.quant.schemes import FROM_CHECKPOINTS, SCHEMES

SMALL_GROUPS = {
    f"{name}-{size}": scheme._replace(group=size)
    for name, scheme in (("int4", SCHEMES["int4"]), ("int4_zeros", FROM_CHECKPOINTS["int4_zeros"]))
    for size in (64, 32)
}
EVERY_SCHEME = {**SCHEMES, **FROM_CHECKPOINTS, **SMALL_GROUPS}
