"""Linear: against float64 NumPy, in both dtypes."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rtp_jax.layers.linear import Linear, Place
from rtp_jax.layers.target import Target


def linear(bias: bool, dtype, rng) -> Linear:
    target = Target("cpu", jnp.dtype(dtype))
    layer = Linear(("embed", 40), ("mlp", 24), bias=bias, target=target)
    layer.kernel.values.set_value(jnp.asarray(rng.normal(size=(24, 40)), dtype))
    if layer.bias is not None:
        layer.bias.set_value(jnp.asarray(rng.normal(size=24), dtype))
    return layer


# float32: 40 products; bfloat16: operands are exact, sums float32, one rounding to 8 bits.
@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [("float32", 0, 1e-5), ("bfloat16", 4e-3, 1e-5)]
)
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_right(bias, dtype, rtol, atol):
    rng = np.random.default_rng(0)
    layer, x = linear(bias, dtype, rng), jnp.asarray(rng.normal(size=(8, 40)), dtype)
    exact = np.float64(x) @ np.float64(layer.kernel.values[...]).T
    if bias:
        exact += np.float64(layer.bias[...])
    actual = layer(x, Place(jnp.int32(0), None))
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.float64(actual), exact, rtol=rtol, atol=atol)


def test_parameters_know_their_axes():
    state = nnx.state(linear(True, "float32", np.random.default_rng(0)))
    assert state["kernel"]["values"].get_metadata()["axes"] == ("mlp", "embed")
    assert state["bias"].get_metadata()["axes"] == ("mlp",)


def test_an_axis_that_nobody_knows_is_refused():
    with pytest.raises(AssertionError, match=r"parallel/axes\.py"):
        Linear(("width", 4), ("mlp", 4), target=Target("cpu", jnp.dtype("float32")))
