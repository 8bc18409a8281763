"""How devices are arranged for a model, and what each of them has."""

import pytest

from rtp_jax.parallel.axes import MeshShape, mesh_shape


@pytest.mark.parametrize(
    ("devices", "kv_heads", "shape"),
    [
        (1, 8, (1, 1)),
        (4, 8, (4, 1)),
        (8, 8, (8, 1)),
        (8, 2, (2, 4)),
        (4, 1, (1, 4)),
        (2, 3, None),
        (4, 6, None),
        (6, 4, None),
    ],
)
def test_a_device_has_the_kv_heads_of_its_queries(devices, kv_heads, shape):
    found = mesh_shape(devices, kv_heads)
    assert found == shape
    if found is None:
        return
    num_heads = 3 * devices * kv_heads
    own = num_heads // devices
    for device in range(devices):
        wanted = {head * kv_heads // num_heads for head in range(device * own, (device + 1) * own)}
        held = kv_heads // found.tensor
        first = device // found.copies * held
        assert wanted == set(range(first, first + held))


def test_what_is_divided_and_what_is_whole():
    shape = MeshShape(2, 4)
    assert [shape.parts(axis) for axis in ("heads", "kv_heads", "mlp", "vocab")] == [8, 2, 8, 8]
    assert [shape.parts(axis) for axis in ("embed", "head_dim", "layers", "groups")] == [1] * 4
    assert shape.share("kv_heads", 64) == 32
    assert shape.dividing("embed") == MeshShape().dividing("heads") == ()
    assert shape.dividing("kv_heads") == ("tensor",)
