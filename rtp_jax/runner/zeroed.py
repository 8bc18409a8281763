"""Large zeroed arrays that cost nothing until they are touched, where the system allows it.

XLA writes every zero it is asked for, and a system takes a second or more to find gigabytes that no
request needs yet.  On a CPU an array is therefore the result of a native call that writes nothing,
and `host_memory.py` has the system supply its zeros.

Read next: `host_memory.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.kernels.native import library
from rtp_jax.runner.device import Device
from rtp_jax.runner.host_memory import zero_untouched

LARGE = 64 << 20  # bytes from which on it is worth the while


def zeroed(shape: tuple[int, ...], dtype: np.dtype, device: Device) -> jax.Array:
    """Make an array of zeros that the device owns, so that it can be donated."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    kernels = library.loaded()
    if device.platform != "cpu" or num_bytes < LARGE or kernels is None:
        return jnp.zeros(shape, dtype, device=device)
    with jax.default_device(device):
        array = _unwritten(kernels.target("rtp_unwritten"), shape, dtype)
    jax.block_until_ready(array)  # asking for the pointer would wait with the GIL
    zero_untouched(array.unsafe_buffer_pointer(), num_bytes)
    return array


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _unwritten(target: str, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    return jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(shape, dtype))()
