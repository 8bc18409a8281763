"""How is a parameter declared?  With its shape, its dtype and what each dimension means.

A parameter names logical axes, not a mesh: `parallel/axes.py` says what they become.  Models are
built under `nnx.eval_shape`, so the zeros here are never allocated.
"""

import jax.numpy as jnp
from flax import nnx


def parameter(axes: dict[str, int], dtype: jnp.dtype) -> nnx.Param:
    """Declare a parameter by its logical axes, in order, and their sizes."""
    return nnx.Param(jnp.zeros(tuple(axes.values()), dtype), axes=tuple(axes))


def axes_of(variable: nnx.Variable) -> tuple[str, ...]:
    """Return the logical axes of a parameter."""
    return variable.get_metadata()["axes"]
