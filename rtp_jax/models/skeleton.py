"""From the modules of a model to its skeleton: the one reader of what parameters say of themselves.

Modules are built abstractly, so nothing is allocated.
"""

import jax
from flax import nnx

from rtp_jax.layers.encoding import SCALES, VALUES, Encoding
from rtp_jax.layers.parameter import axes_of
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.models.structure import Leaves, Skeleton


def skeleton(spec: ModelSpec, target: Target) -> Skeleton:
    """Build the structure of a model for a target; its dtype is float32 or bfloat16."""
    build = architecture(spec.architecture).build
    graph, state = nnx.split(nnx.eval_shape(lambda: build(spec, target)))
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    leaves, tree = jax.tree.flatten(state)
    assert [v.get_value() for v in flat.values()] == leaves, "two orders of one set of parameters"
    held = dict(zip(flat, leaves, strict=True))
    encodings = {
        path.removesuffix(VALUES): encoding
        for path, variable in flat.items()
        if (encoding := variable.get_metadata().get("encoding")) is not None
    }
    stored = {
        path.removesuffix(VALUES): _stored(shape, encodings.get(path.removesuffix(VALUES)))
        for path, shape in held.items()
        if not path.endswith(SCALES)
    }
    axes = {path: axes_of(variable) for path, variable in flat.items()}

    def assemble(leaves: Leaves) -> nnx.Module:
        return nnx.merge(graph, jax.tree.unflatten(tree, leaves))

    return Skeleton(stored, encodings, held, axes, assemble)


def _stored(held: jax.ShapeDtypeStruct, encoding: Encoding | None) -> jax.ShapeDtypeStruct:
    """Give the shape and dtype in which a parameter is loaded, before it is encoded."""
    if encoding is None:
        return held
    stack = held.shape[:-2]
    return jax.ShapeDtypeStruct((*stack, encoding.outer, encoding.inner), encoding.dtype)
