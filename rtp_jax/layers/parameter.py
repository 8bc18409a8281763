"""How is a parameter declared?  With its shape, its dtype and what each dimension means.

A parameter names logical axes, not a mesh: `parallel/axes.py` says what they become.  Models are
built under `nnx.eval_shape`, so the zeros here are never allocated.
"""

import jax.numpy as jnp
from flax import nnx

from rtp_jax.parallel.axes import MESH_AXES


def parameter(axes: dict[str, int], dtype: jnp.dtype) -> nnx.Param:
    """Declare a parameter by its logical axes, in order, and what a device has of each."""
    assert axes.keys() <= MESH_AXES.keys(), f"{list(axes)}: not all in parallel/axes.py"
    return nnx.Param(jnp.zeros(tuple(axes.values()), dtype), axes=tuple(axes))


def stacked(layer: nnx.Module, num_layers: int) -> nnx.Module:
    """Give every parameter of a layer a leading axis `layers`, for the layers that are like it."""
    for _, variable in nnx.iter_graph(layer):
        if isinstance(variable, nnx.Param):
            value = variable.get_value()
            variable.set_value(jnp.zeros((num_layers, *value.shape), value.dtype))
            variable.set_metadata(axes=("layers", *axes_of(variable)))
    return layer


def axes_of(variable: nnx.Variable) -> tuple[str, ...]:
    """Return the logical axes of a parameter."""
    return variable.get_metadata()["axes"]
