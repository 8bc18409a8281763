"""GatedMLP: against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.layers.linear import Place
from rtp_jax.layers.mlp import GatedMLP
from rtp_jax.layers.target import Target


@pytest.mark.parametrize("bias", [False, True])
def test_mlp_is_right(bias):
    rng = np.random.default_rng(0)
    mlp = GatedMLP(12, 20, bias=bias, target=Target("cpu", jnp.dtype("float32")))
    shifts = {}
    for name, linear in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
        values = linear.kernel.values
        values.set_value(jnp.asarray(rng.normal(size=values.shape), jnp.float32))
        shifts[name] = 0.0
        if linear.bias is not None:
            linear.bias.set_value(jnp.asarray(rng.normal(size=linear.bias.shape), jnp.float32))
            shifts[name] = np.float64(linear.bias[...])
    x = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    gate = np.float64(x) @ np.float64(mlp.gate.kernel.values[...]).T + shifts["gate"]
    up = np.float64(x) @ np.float64(mlp.up.kernel.values[...]).T + shifts["up"]
    inner = gate / (1 + np.exp(-gate)) * up
    residual = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    exact = (
        np.float64(residual) + inner @ np.float64(mlp.down.kernel.values[...]).T + shifts["down"]
    )
    # Three sums of up to 20 products of numbers around 10.
    actual = mlp.add_to(residual, x, Place(jnp.int32(0), None))
    np.testing.assert_allclose(actual, exact, rtol=1e-5, atol=1e-3)
