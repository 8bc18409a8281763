"""A model without weights: what it needs, and how it is put together from bare arrays.

Loading asks a skeleton which parameters a checkpoint must fill, and in which encoding each matrix
is held; the compiled step takes the held arrays as flat leaves, because handing over a module costs
more than a small step, and assembles the module while tracing.

A start that finds its programs compiled traces nothing, so it needs no modules, and without them no
flax, which is slow to import: then the skeleton is read from a description that an earlier
start kept.

Read next: `skeleton.py`, which makes one from modules.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rtp_jax.late_imports import late
from rtp_jax.layers.encoding import VALUES, Encoding
from rtp_jax.layers.target import Target
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.schemes import Scheme

modules = late("rtp_jax.models.skeleton")

Shapes = Mapping[str, jax.ShapeDtypeStruct]  # dotted path to shape and dtype
Leaves = Sequence[jax.Array]


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The structure of a model; `held` and `axes` are in the order of the leaves.

    Shapes are those of what all devices hold together.
    """

    stored: Shapes  # as loaded
    encodings: Mapping[str, Encoding]  # dotted path of each stored matrix to how it is held
    held: Shapes  # as computed with
    axes: Mapping[str, tuple[str, ...]]  # dotted path, as held, to logical axes
    # Puts the nnx.Module together from what one device has of the leaves; cheap while tracing, too
    # slow for every step.
    assemble: Callable[[Leaves], Any]

    def leaves(self, loaded: Mapping[str, jax.Array]) -> list[jax.Array]:
        """Put loaded parameters into the order in which `assemble` takes them.

        A matrix that is held as it is stored may come under its stored path.
        """
        stored = {path: path.removesuffix(VALUES) for path in self.held}
        return [loaded[path if path in loaded else stored[path]] for path in self.held]


def describe(skeleton: Skeleton) -> str | None:
    """Write everything but the modules as JSON; None if JSON cannot say it all."""
    described = {
        "stored": _described(skeleton.stored),
        "encodings": {
            path: {**encoding._asdict(), "dtype": encoding.dtype.name}
            for path, encoding in skeleton.encodings.items()
        },
        "held": _described(skeleton.held),
        "axes": skeleton.axes,
    }
    written = json.dumps(described, default=lambda _: None)
    read = _read(written, skeleton.assemble)
    return written if read == skeleton else None


def described_skeleton(description: str, spec: ModelSpec, target: Target) -> Skeleton:
    """Read what `describe` wrote of the skeleton of the same model and target.

    Its modules are built when something is traced after all.
    """
    build = functools.cache(lambda: modules.skeleton(spec, target))
    return _read(description, lambda leaves: build().assemble(leaves))


def _read(description: str, assemble: Callable[[Leaves], Any]) -> Skeleton:
    described = json.loads(description)
    return Skeleton(
        stored=_shapes(described["stored"]),
        encodings={
            path: Encoding(**_typed(fields)) for path, fields in described["encodings"].items()
        },
        held=_shapes(described["held"]),
        axes={path: tuple(names) for path, names in described["axes"].items()},
        assemble=assemble,
    )


def _typed(fields: dict[str, Any]) -> dict[str, Any]:
    """Give the fields of an encoding their types again."""
    return {
        **fields,
        "scheme": Scheme(*fields["scheme"]),
        "dtype": jnp.dtype(fields["dtype"]),
        "parts": tuple(fields["parts"]),
    }


def _described(shapes: Shapes) -> dict[str, list]:
    return {path: [shape.shape, shape.dtype.name] for path, shape in shapes.items()}


def _shapes(described: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        path: jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
        for path, (shape, dtype) in described.items()
    }
