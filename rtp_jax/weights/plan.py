"""Where does each tensor go?  Decided, and refused, from the headers, before a tensor is read.

Read next: `loader.py`, which carries the plan out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.convert import convertible
from rtp_jax.weights.safetensors import Tensor
from rtp_jax.weights.table import NAMES_SHOWN, Shape, Transform, Weight, WeightTable, as_is

Parameters = Mapping[str, jax.ShapeDtypeStruct]  # dotted path to shape and dtype


@dataclass(frozen=True, slots=True)
class Placement:
    """A tensor becomes row `row` of a parameter, or all of it where `row` is ()."""

    parameter: str
    row: Shape
    transform: Transform


@dataclass(frozen=True, slots=True)
class Plan:
    """The placements of each tensor, none if it is ignored; how many rows fill each parameter."""

    placements_of: dict[str, list[Placement]]
    num_rows: dict[str, int]


def plan(
    tensors: Mapping[str, Tensor],
    table: WeightTable,
    parameters: Parameters,
    file_of: Mapping[str, Path] | None = None,
) -> Plan:
    """Place all tensors of a checkpoint, or name those that do not fit, with their files."""
    weights_of = table.resolve(tensors)
    placements_of = {
        name: [_placement(weight, parameters) for weight in weights]
        for name, weights in weights_of.items()
    }
    placements = [(tensors[name], p) for name, several in placements_of.items() for p in several]
    files = {name: f" ({path.name})" for name, path in (file_of or {}).items()}
    if misfits := [
        words + files.get(tensor.name, "")
        for tensor, placement in placements
        if (words := _misfit(tensor, placement, parameters))
    ]:
        more = f" and {len(misfits) - NAMES_SHOWN} more" if len(misfits) > NAMES_SHOWN else ""
        raise CheckpointError(
            f"RTPJ-3101 TENSORS_DO_NOT_FIT: {len(misfits)} tensors do not fit the model: "
            f"{'; '.join(misfits[:NAMES_SHOWN])}{more}. Use the config.json of this checkpoint."
        )
    rows: dict[str, list[Shape]] = {path: [] for path in parameters}
    for _, placement in placements:
        rows[placement.parameter].append(placement.row)
    optional = {_placement(row, parameters).parameter for row in table.rows if row.is_optional}
    for path, filled in rows.items():
        if path not in optional:
            _check_filled(path, parameters[path].shape, filled)
    return Plan(placements_of, {path: len(filled) for path, filled in rows.items()})


def _placement(weight: Weight, parameters: Parameters) -> Placement:
    if weight.target in parameters:  # a path may have numbers of its own
        return Placement(weight.target, (), weight.transform)
    assert weight.parameter in parameters, f"{weight} fills a parameter that the model lacks"
    return Placement(weight.parameter, weight.row, weight.transform)


def _misfit(tensor: Tensor, placement: Placement, parameters: Parameters) -> str | None:
    """Say in words why a tensor cannot go where it should, or return None if it can."""
    parameter = parameters[placement.parameter]
    target = ".".join((placement.parameter, *map(str, placement.row)))
    if not convertible(tensor.dtype, np.dtype(parameter.dtype)):
        return f"{tensor.name} is {tensor.dtype}, {target} is {parameter.dtype}"
    needed, shape = parameter.shape[len(placement.row) :], placement.transform.shape(tensor.shape)
    if shape == needed:
        return None
    became = f", {placement.transform.name} {list(shape)}" if shape else ""
    became = "" if placement.transform is as_is else became
    return f"{tensor.name} is {list(tensor.shape)}{became}, {target} is {list(needed)}"


def _check_filled(path: str, shape: Shape, rows: list[Shape]) -> None:
    """See to it that the table fills every row of a parameter, each once."""
    assert rows, f"no row of the weight table fills {path}"
    depth = len(rows[0])
    assert all(len(row) == depth <= len(shape) for row in rows), f"{path} has rows of two kinds"
    inside = all(n < size for row in rows for n, size in zip(row, shape, strict=False))
    assert inside, f"{path} of shape {shape} has no rows {rows}"
    needed = math.prod(shape[:depth])
    assert len(set(rows)) == len(rows) == needed, f"{path}: {len(rows)} of {needed} rows are filled"
