"""From the modules of a model to its skeleton: the one reader of what parameters say of themselves.

Modules are built abstractly, so nothing is allocated.
"""

from collections.abc import Mapping

import jax
from flax import nnx

from rtp_jax.layers.encoding import ORDER, SCALES, VALUES, ZEROS, Encoding
from rtp_jax.layers.parameter import axes_of
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.models.structure import Leaves, Skeleton
from rtp_jax.parallel.axes import MeshShape
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.quantized import parts_of
from rtp_jax.weights.table import WeightTable, stacked_path


def skeleton(spec: ModelSpec, target: Target) -> Skeleton:
    """Build the structure of a model for a target; its dtype is float32 or bfloat16.

    Modules have the shapes of what one device holds, everything else those of the whole model.
    """
    build = architecture(spec.architecture).build
    table = architecture(spec.architecture).weight_table(spec)
    target = _with_formats(target, table)
    graph, state = nnx.split(nnx.eval_shape(lambda: build(spec, target)))
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    leaves, tree = jax.tree.flatten(state)
    assert [v.get_value() for v in flat.values()] == leaves, "two orders of one set of parameters"
    axes = {path: axes_of(variable) for path, variable in flat.items()}
    held = {
        path: _of_all(leaf, axes[path], target.mesh)
        for path, leaf in zip(flat, leaves, strict=True)
    }
    encodings = {
        path.removesuffix(VALUES): encoding
        for path, variable in flat.items()
        if (encoding := variable.get_metadata().get("encoding")) is not None
    }
    stored: dict[str, jax.ShapeDtypeStruct] = {}
    for path, shape in held.items():
        if not path.endswith((SCALES, ZEROS, ORDER)):
            stored |= _stored(path.removesuffix(VALUES), shape, encodings)
    filled = {path for row in table.rows for path in (row.target, row.parameter)}
    stored = {path: shape for path, shape in stored.items() if path in filled}

    def assemble(leaves: Leaves) -> nnx.Module:
        return nnx.merge(graph, jax.tree.unflatten(tree, leaves))

    return Skeleton(stored, encodings, held, axes, assemble)


def _of_all(
    part: jax.ShapeDtypeStruct, axes: tuple[str, ...], mesh: MeshShape
) -> jax.ShapeDtypeStruct:
    """Describe what all devices together hold of a parameter."""
    shape = [size * mesh.parts(axis) for axis, size in zip(axes, part.shape, strict=True)]
    return jax.ShapeDtypeStruct(tuple(shape), part.dtype)


def _stored(
    path: str, held: jax.ShapeDtypeStruct, encodings: Mapping[str, Encoding]
) -> dict[str, jax.ShapeDtypeStruct]:
    """Give the shapes and dtypes in which a parameter is loaded, before it is encoded."""
    encoding = encodings.get(path)
    if encoding is None:
        return {path: held}
    stack = held.shape[:-2]
    if encoding.source is None:
        shape = (*stack, *encoding.whole)
        return {path: jax.ShapeDtypeStruct(shape, encoding.dtype)}
    return {
        f"{path}.{part.name}": jax.ShapeDtypeStruct((*stack, *part.shape), part.dtype)
        for part in parts_of(encoding.source, *encoding.whole)
    }


def _with_formats(target: Target, table: WeightTable) -> Target:
    """Tell modules how the checkpoint has their matrices, by their paths in this target."""
    format_of: dict[str, MatrixFormat] = {}
    kinds: dict[str, set[MatrixFormat | None]] = {}
    for row in table.rows:
        path = row.target if row.kind is None else row.target.rpartition(".")[0]
        kinds.setdefault(stacked_path(path), set()).add(row.kind)
        if row.kind is not None:
            format_of[path.rpartition(".")[0]] = row.kind
    schemes = [target.scheme, *(kind.scheme for kind in format_of.values())]
    floating = target.native is None and any(scheme.floating for scheme in schemes)
    uneven = any(len(several) > 1 for several in kinds.values())
    target = target._replace(own_arrays=uneven or floating)
    if not target.unrolled:
        format_of = {stacked_path(path): kind for path, kind in format_of.items()}
    return target._replace(formats=tuple(format_of.items()))
