"""Shards: boxes are those of jax, and their byte ranges are where NumPy has them."""

import itertools
import json
import math

import numpy as np
import pytest

from rtp_jax.weights.shards import boxes, byte_ranges, overlap, shape_of, whole, within
from tests.weights.devices import run_with_devices

SHAPES = [(), (8,), (8, 6), (4, 8, 6), (2, 3, 4, 5), (0, 4), (4, 0), (1, 1, 8)]


def random_box(shape, random):
    ends = [sorted(random.integers(0, size + 1, 2)) for size in shape]
    return tuple((int(start), int(end)) for start, end in ends)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("itemsize", [1, 2, 4])
def test_byte_ranges_are_the_bytes_of_a_box(shape, itemsize):
    random = np.random.default_rng(len(shape) + itemsize)
    numbers = np.arange(math.prod(shape) * itemsize).reshape(*shape, itemsize)
    for _ in range(50):
        box = random_box(shape, random)
        wanted = numbers[tuple(slice(*ends) for ends in box)].reshape(-1)
        ranges = byte_ranges(box, shape, itemsize)
        assert [i for start, end in ranges for i in range(start, end)] == wanted.tolist()
        assert all(end < start for (_, end), (start, _) in itertools.pairwise(ranges))


def test_rows_are_one_range_and_columns_one_for_each_row():
    assert byte_ranges(((2, 4), (0, 6)), (8, 6), 2) == [(24, 48)]
    assert byte_ranges(((0, 8), (3, 6)), (8, 6), 2) == [(i * 12 + 6, i * 12 + 12) for i in range(8)]
    assert byte_ranges(whole((8, 6)), (8, 6), 2) == [(0, 96)]


def test_boxes_of_a_mesh_of_two_axes():
    mesh = {"data": 2, "tensor": 2}
    assert boxes((8,), ("tensor",), mesh) == [((0, 4),), ((4, 8),), ((0, 4),), ((4, 8),)]
    assert boxes((8,), (("tensor", "data"),), mesh) == [
        ((0, 2),),
        ((4, 6),),
        ((2, 4),),
        ((6, 8),),
    ]
    assert boxes((8, 6), (), mesh) == [whole((8, 6))] * 4


def test_an_axis_that_does_not_divide_is_a_mistake_of_ours():
    with pytest.raises(AssertionError):
        boxes((7,), ("tensor",), {"tensor": 2})


def test_overlap_and_what_it_is_within():
    shared = overlap(((0, 4), (2, 6)), ((3, 8), (0, 3)))
    assert shared == ((3, 4), (2, 3))
    assert shape_of(shared) == (1, 1)
    assert within(shared, ((3, 8), (0, 3))) == (slice(0, 1), slice(2, 3))
    assert overlap(((0, 4),), ((4, 8),)) is None
    assert overlap((), ()) == ()


SPECS = [[], ["a"], [None, "b"], ["b", "a"], [["a", "b"]], [["b", "a"], None], [["b"], ["a"]]]
AS_JAX_DOES = """
import json, sys, jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = jax.make_mesh((2, 4), ("a", "b"))
for split in json.loads(sys.argv[1]):
    split = [tuple(name) if isinstance(name, list) else name for name in split]
    found = NamedSharding(mesh, PartitionSpec(*split)).devices_indices_map((8, 16))
    print(json.dumps([[s.indices(n)[:2] for s, n in zip(found[device], (8, 16))]
                      for device in mesh.devices.flat]))
"""


def test_boxes_are_those_of_jax():
    lines = run_with_devices(8, "-c", AS_JAX_DOES, json.dumps(SPECS)).splitlines()
    for split, line in zip(SPECS, lines, strict=True):
        split = [tuple(name) if isinstance(name, list) else name for name in split]
        mine = boxes((8, 16), split, {"a": 2, "b": 4})
        assert [[list(ends) for ends in box] for box in mine] == json.loads(line), split
