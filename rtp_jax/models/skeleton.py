"""A model without weights: what it needs, and how it is put together from bare arrays.

Loading asks a skeleton which parameters a checkpoint must fill, and in which encoding each matrix
is held; the compiled step takes the held arrays as flat leaves, because handing over a module costs
more than a small step, and assembles the module while tracing.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import jax
from flax import nnx

from rtp_jax.layers.matrix import SCALES, VALUES, Encoding
from rtp_jax.layers.parameter import axes_of
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The structure of a model; `held` and `axes` are in the order of the leaves."""

    stored: Mapping[str, jax.ShapeDtypeStruct]  # dotted path to shape and dtype, as loaded
    encodings: Mapping[str, Encoding]  # dotted path of each stored matrix to how it is held
    held: Mapping[str, jax.ShapeDtypeStruct]  # dotted path to shape and dtype, as computed with
    axes: Mapping[str, tuple[str, ...]]  # dotted path, as held, to logical axes
    graph: nnx.GraphDef
    tree: Hashable  # how the leaves nest

    def leaves(self, loaded: Mapping[str, jax.Array]) -> list[jax.Array]:
        """Put loaded parameters into the order in which `assemble` takes them.

        A matrix that is held as it is stored may come under its stored path.
        """
        stored = {path: path.removesuffix(VALUES) for path in self.held}
        return [loaded[path if path in loaded else stored[path]] for path in self.held]

    def assemble(self, leaves: Sequence[jax.Array]) -> nnx.Module:
        """Put the model together; cheap while tracing, too slow for every step."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))


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
    return Skeleton(stored, encodings, held, axes, graph, tree)


def _stored(held: jax.ShapeDtypeStruct, encoding: Encoding | None) -> jax.ShapeDtypeStruct:
    """Give the shape and dtype in which a parameter is loaded, before it is encoded."""
    if encoding is None:
        return held
    stack = held.shape[:-2]
    return jax.ShapeDtypeStruct((*stack, encoding.outer, encoding.inner), encoding.dtype)
