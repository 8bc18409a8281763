"""Large zeroed arrays that cost nothing until they are touched, where the system allows it.

XLA writes every zero it is asked for, and a system takes long to find gigabytes that no
request needs yet.  On a CPU a large array is therefore the result of a native call that writes
nothing, and `host_memory.py` has the system supply its zeros.

Read next: `host_memory.py`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rtp_jax.kernels.native import library
from rtp_jax.runner.host_memory import zero_untouched

LARGE = 64 << 20  # bytes from which on it is worth the while

Arrays = Any  # a pytree


def maker(described: Arrays, native: str | None) -> Callable[[], Arrays]:
    """Give the function, to be compiled, that makes arrays which `zero` completes.

    `native` is the level of the C++ kernels that it may call, one that is loaded; None: none.
    """
    kernels = None if native is None else library.loaded(native)
    unwritten = None if kernels is None else kernels.target("rtp_unwritten")

    def make(one: jax.ShapeDtypeStruct) -> jax.Array:
        if unwritten is None or _num_bytes(one) < LARGE:
            return jnp.zeros(one.shape, one.dtype)
        return jax.ffi.ffi_call(unwritten, jax.ShapeDtypeStruct(one.shape, one.dtype))()

    return lambda: jax.tree.map(make, described)


def zero(arrays: Arrays, native: str | None) -> None:
    """Zero what the function of `maker` made on a CPU and did not write."""
    if native is None:
        return
    for array in jax.tree.leaves(arrays):
        for part in array.addressable_shards:  # one for each device
            if _num_bytes(part.data) >= LARGE:
                jax.block_until_ready(part.data)  # asking for the pointer would wait with the GIL
                zero_untouched(part.data.unsafe_buffer_pointer(), _num_bytes(part.data))


def _num_bytes(array: jax.Array | jax.ShapeDtypeStruct) -> int:
    return array.size * array.dtype.itemsize
