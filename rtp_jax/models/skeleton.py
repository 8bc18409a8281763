"""A model without weights: what it needs, and how it is put together from bare arrays.

Loading asks a skeleton which parameters there are; the compiled step takes the arrays as flat
leaves, because handing over a module costs more than a small step, and assembles the module while
tracing.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from rtp_jax.layers.attention import Target
from rtp_jax.layers.parameter import axes_of
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The structure of a model; its mappings are in the order of `leaves`."""

    parameters: Mapping[str, jax.ShapeDtypeStruct]  # dotted path to shape and dtype
    axes: Mapping[str, tuple[str, ...]]  # dotted path to logical axes
    graph: nnx.GraphDef
    tree: Hashable  # how the leaves nest

    def leaves(self, loaded: Mapping[str, jax.Array]) -> list[jax.Array]:
        """Put loaded parameters into the order in which `assemble` takes them."""
        return [loaded[path] for path in self.parameters]

    def assemble(self, leaves: Sequence[jax.Array]) -> nnx.Module:
        """Put the model together; cheap while tracing, too slow for every step."""
        return nnx.merge(self.graph, jax.tree.unflatten(self.tree, leaves))


def skeleton(
    spec: ModelSpec, *, dtype: jnp.dtype, platform: str, attention: str = "auto"
) -> Skeleton:
    """Build the structure of a model that computes in float32 or bfloat16 on `platform`.

    `attention` names an implementation of paged attention.
    """
    target = Target(platform, jnp.dtype(dtype), attention)
    build = architecture(spec.architecture).build
    graph, state = nnx.split(nnx.eval_shape(lambda: build(spec, target)))
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    leaves, tree = jax.tree.flatten(state)
    assert [v.get_value() for v in flat.values()] == leaves, "two orders of one set of parameters"
    axes = {path: axes_of(variable) for path, variable in flat.items()}
    return Skeleton(dict(zip(flat, leaves, strict=True)), axes, graph, tree)
