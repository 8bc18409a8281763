"""Weight tables: rows of layers and experts, layouts, and names that do not match."""

import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.table import (
    Weight,
    WeightTable,
    as_is,
    in_each_layer,
    split_heads,
    transposed,
)


def test_rows_are_repeated_for_each_layer():
    rows = in_each_layer("model.layers.{i}", "layers.{i}", [Weight("a.weight", "b.scale")], 12)
    assert len(rows) == 12
    assert rows[11] == Weight("model.layers.11.a.weight", "layers.11.b.scale")
    assert (rows[11].parameter, rows[11].row) == ("layers.b.scale", (11,))


def test_experts_are_rows_of_rows():
    experts = in_each_layer("experts.{i}", "moe.{i}", [Weight("up", "up.kernel")], 4)
    rows = in_each_layer("h.{i}", "layers.{i}", experts, 3)
    assert rows[-1].source == "h.2.experts.3.up"
    assert (rows[-1].parameter, rows[-1].row) == ("layers.moe.up.kernel", (2, 3))


def test_a_whole_parameter_has_no_row():
    weight = Weight("norm.weight", "final_norm.scale")
    assert (weight.parameter, weight.row) == ("final_norm.scale", ())


@pytest.mark.parametrize(
    ("transform", "before", "after"),
    [
        (as_is, (2, 3), (2, 3)),
        (transposed, (2, 3), (3, 2)),
        (transposed, (5,), (5,)),
        (split_heads(4), (12, 5), (4, 3, 5)),
        (split_heads(4), (12,), (4, 3)),
    ],
)
def test_the_shape_function_agrees_with_the_transform(transform, before, after):
    assert transform.shape(before) == after
    assert transform.apply(np.zeros(before)).shape == after


@pytest.mark.parametrize("shape", [(7, 3), ()])
def test_heads_that_do_not_divide_have_no_shape(shape):
    assert split_heads(4).shape(shape) is None


def test_every_tensor_finds_its_rows():
    table = WeightTable([Weight("a", "x"), Weight("a", "y"), Weight("b", "z")], ignored=("*.skip",))
    rows = table.resolve(["b", "a", "m.skip"])
    assert [row.target for row in rows["a"]] == ["x", "y"]
    assert rows["m.skip"] == []


def test_missing_and_extra_tensors_are_named_and_counted():
    layer = [Weight("w", "k")]
    table = WeightTable(in_each_layer("l.{i}", "l.{i}", layer, 15))
    with pytest.raises(CheckpointError, match="RTPJ-3001 TENSORS_DO_NOT_MATCH") as caught:
        table.resolve(["l.0.w", "unknown.b", "unknown.a"])
    message = str(caught.value)
    assert "14 that the model needs are missing: l.1.w, l.2.w" in message
    assert "l.10.w and 4 more" in message
    assert "l.11.w" not in message
    assert "2 have no place in the model: unknown.a, unknown.b" in message


def test_two_rows_for_one_target_are_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        WeightTable([Weight("a", "x"), Weight("b", "x")])
