"""Which tensor of a checkpoint becomes which parameter of a model: rows of data, no renaming code.

A target names a parameter by its dotted path.  A number in it is a row: `layers.3.mlp.up.kernel` is
row 3 of the stacked parameter `layers.mlp.up.kernel`, and `layers.3.experts.7.up.kernel` is row
(3, 7) of `layers.experts.up.kernel`.  One tensor may have several rows, one for each part of it.

Read next: `safetensors.py` for what a file holds, `loader.py` for how it is read.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.matrix_format import MatrixFormat

NAMES_SHOWN = 10

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transform:
    """How a tensor is laid out anew, and the shape that gives; None if it cannot be done."""

    name: str
    apply: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape | None]


as_is = Transform("as_is", lambda tensor: tensor, lambda shape: shape)
transposed = Transform("transposed", np.transpose, lambda shape: shape[::-1])


def split_heads(num_heads: int) -> Transform:
    """Split the first axis into heads: [h*d, in] to [h, d, in], and a bias [h*d] to [h, d]."""

    def shape(whole: Shape) -> Shape | None:
        if not whole or whole[0] % num_heads:
            return None
        return (num_heads, whole[0] // num_heads, *whole[1:])

    def apply(tensor: np.ndarray) -> np.ndarray:
        return tensor.reshape(num_heads, tensor.shape[0] // num_heads, *tensor.shape[1:])

    return Transform(f"split_heads({num_heads})", apply, shape)


@dataclass(frozen=True, slots=True)
class Weight:
    """One row: a tensor's name in the checkpoint, a parameter's path in the model."""

    source: str
    target: str
    transform: Transform = as_is
    kind: MatrixFormat | None = None  # of the quantized matrix that this is a part of
    is_optional: bool = False  # the checkpoint may lack it

    @property
    def parameter(self) -> str:
        """The path of the (stacked) parameter: the target without its row numbers."""
        return stacked_path(self.target)

    @property
    def row(self) -> Shape:
        """The row of the stacked parameter that this weight fills; () if it fills all of it."""
        return tuple(int(part) for part in self.target.split(".") if part.isdecimal())


def stacked_path(path: str) -> str:
    """Leave the row numbers out of a path."""
    return ".".join(part for part in path.split(".") if not part.isdecimal())


def in_each_layer(
    source_prefix: str, target_prefix: str, rows: Sequence[Weight], num_layers: int
) -> list[Weight]:
    """Repeat rows for each layer: `{i}` in a prefix is its number.  Experts nest the same way."""
    return [
        replace(
            row,
            source=f"{source_prefix.replace('{i}', str(i))}.{row.source}",
            target=f"{target_prefix.replace('{i}', str(i))}.{row.target}",
        )
        for i in range(num_layers)
        for row in rows
    ]


@dataclass(frozen=True)
class WeightTable:
    """All rows of an architecture, and the names (glob patterns) of tensors it has no use for."""

    rows: Sequence[Weight]
    ignored: tuple[str, ...] = ()
    rows_of: dict[str, list[Weight]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        targets = [row.target for row in self.rows]
        assert len(set(targets)) == len(targets), "two rows of a weight table have one target"
        rows_of: dict[str, list[Weight]] = {}
        for row in self.rows:
            rows_of.setdefault(row.source, []).append(row)
        object.__setattr__(self, "rows_of", rows_of)

    def resolve(self, header_names: Iterable[str]) -> dict[str, list[Weight]]:
        """Give the rows of each tensor of a checkpoint; refuse missing and extra ones by name.

        Ignored tensors have no rows.
        """
        names = set(header_names)
        missing = [
            source
            for source, rows in self.rows_of.items()
            if source not in names and not all(row.is_optional for row in rows)
        ]
        extra = sorted(name for name in names - self.rows_of.keys() if not self._ignores(name))
        if missing or extra:
            raise CheckpointError(_mismatch(missing, extra))
        return {name: self.rows_of.get(name, []) for name in sorted(names)}

    def _ignores(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)


def _mismatch(missing: list[str], extra: list[str]) -> str:
    facts = []
    if missing:
        facts.append(f"{len(missing)} that the model needs are missing: {some_of(missing)}")
    if extra:
        facts.append(f"{len(extra)} have no place in the model: {some_of(extra)}")
    return (
        f"RTPJ-3001 TENSORS_DO_NOT_MATCH: of the tensors in the checkpoint, {'; '.join(facts)}. "
        "Use a complete checkpoint whose config.json belongs to it."
    )


def some_of(names: Sequence[str]) -> str:
    """List the first names, and say how many more there are."""
    shown = ", ".join(names[:NAMES_SHOWN])
    return f"{shown} and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else shown
