"""Plans: tensors that do not fit are named with both shapes; our own mistakes are assertions."""

from pathlib import Path

import jax
import numpy as np
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.weights.plan import Placement, plan
from rtp_jax.weights.safetensors import Tensor
from rtp_jax.weights.table import Weight, WeightTable, as_is, in_each_layer, split_heads, transposed

F32 = np.dtype(np.float32)


def tensor(name, *shape, dtype=F32):
    return Tensor(name, np.dtype(dtype), shape, 0, 0)


def made(tensors, rows, **shapes):
    parameters = {k.replace("_", "."): jax.ShapeDtypeStruct(s, F32) for k, s in shapes.items()}
    return plan({t.name: t for t in tensors}, WeightTable(rows), parameters)


def refused(*args, **shapes) -> str:
    with pytest.raises(CheckpointError, match="RTPJ-3101 TENSORS_DO_NOT_FIT") as caught:
        made(*args, **shapes)
    return str(caught.value)


def test_a_row_of_a_stacked_parameter():
    rows = in_each_layer("l.{i}", "l.{i}", [Weight("a", "b")], 2)
    result = made([tensor("l.0.a", 3), tensor("l.1.a", 3)], rows, l_b=(2, 3))
    assert result.placements_of["l.1.a"] == [Placement("l.b", (1,), as_is)]
    assert result.num_rows == {"l.b": 2}


def test_a_path_with_numbers_of_its_own():
    result = made([tensor("a", 3)], [Weight("a", "block.0.b")], block_0_b=(3,))
    assert result.placements_of["a"] == [Placement("block.0.b", (), as_is)]


def test_a_wrong_shape_says_what_is_and_what_is_needed():
    rows = in_each_layer("l.{i}", "l.{i}", [Weight("a", "b", transposed)], 1)
    message = refused([tensor("l.0.a", 3, 4)], rows, l_b=(1, 5, 3))
    assert "l.0.a is [3, 4], transposed [4, 3], l.b.0 is [5, 3]" in message


def test_heads_that_do_not_divide():
    message = refused([tensor("a", 7)], [Weight("a", "b", split_heads(2))], b=(2, 3))
    assert "1 tensors do not fit the model: a is [7], b is [2, 3]" in message


def test_a_dtype_that_is_never_converted():
    message = refused([tensor("a", 3, dtype=np.int32)], [Weight("a", "b")], b=(3,))
    assert "a is int32, b is float32" in message


def test_a_misfit_is_named_with_its_file():
    tensors = {"a": tensor("a", 3, dtype=np.int32)}
    shapes = {"b": jax.ShapeDtypeStruct((3,), F32)}
    with pytest.raises(CheckpointError, match=r"a is int32, b is float32 \(model-2\.safetensors\)"):
        plan(tensors, WeightTable([Weight("a", "b")]), shapes, {"a": Path("x/model-2.safetensors")})


def test_ten_misfits_are_named_and_all_are_counted():
    rows = [Weight(f"a{i:02}", f"b{i}") for i in range(12)]
    message = refused(
        [tensor(f"a{i:02}", 2) for i in range(12)], rows, **{f"b{i}": (3,) for i in range(12)}
    )
    assert "12 tensors" in message
    assert "a09 is" in message
    assert "a10 is" not in message
    assert "and 2 more" in message


def test_a_row_that_is_not_filled_is_a_mistake_of_ours():
    rows = in_each_layer("l.{i}", "l.{i}", [Weight("a", "b")], 2)
    given = [tensor("l.0.a", 3), tensor("l.1.a", 3)]
    with pytest.raises(AssertionError, match="2 of 3 rows"):
        made(given, rows, l_b=(3, 3))
    with pytest.raises(AssertionError, match="no rows"):
        made(given, rows, l_b=(1, 3))
    with pytest.raises(AssertionError, match="no row of the weight table fills c"):
        made(given, rows, l_b=(2, 3), c=(1,))
    with pytest.raises(AssertionError, match="a parameter that the model lacks"):
        made(given, rows, c=(1,))
