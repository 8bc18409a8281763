"""The largest number of each row as a call that XLA makes: one pass over it, by all threads."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32

from rtp_jax.kernels.native.library import Library


def largest(
    library: Library, x: Float32[Array, "rows width"], columns: int
) -> tuple[Int32[Array, " rows"], Float32[Array, " rows"]]:
    """Return the first of each row's largest numbers, and that number; +inf if the row has a NaN.

    Args:
      library: a loaded library.
      x: any numbers; a row of -inf alone has its largest in column 0.
      columns: how many leading columns are looked at.
    """
    shape = (x.shape[0],)
    results = (jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32))
    call = jax.ffi.ffi_call(library.target("rtp_largest"), results)
    places, numbers = call(x, columns=np.int64(columns))
    return places, numbers
