"""GatedMLP: against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.layers.mlp import GatedMLP


@pytest.mark.parametrize("bias", [False, True])
def test_mlp_is_right(bias):
    rng = np.random.default_rng(0)
    mlp = GatedMLP(12, 20, bias=bias, dtype=jnp.dtype("float32"))
    shifts = {}
    for name, linear in (("gate", mlp.gate), ("up", mlp.up), ("down", mlp.down)):
        linear.kernel.set_value(jnp.asarray(rng.normal(size=linear.kernel.shape), jnp.float32))
        shifts[name] = 0.0
        if linear.bias is not None:
            linear.bias.set_value(jnp.asarray(rng.normal(size=linear.bias.shape), jnp.float32))
            shifts[name] = np.float64(linear.bias[...])
    x = jnp.asarray(rng.normal(size=(8, 12)), jnp.float32)
    gate = np.float64(x) @ np.float64(mlp.gate.kernel[...]).T + shifts["gate"]
    up = np.float64(x) @ np.float64(mlp.up.kernel[...]).T + shifts["up"]
    inner = gate / (1 + np.exp(-gate)) * up
    exact = inner @ np.float64(mlp.down.kernel[...]).T + shifts["down"]
    # Three sums of up to 20 products of numbers around 10.
    np.testing.assert_allclose(mlp(x), exact, rtol=1e-5, atol=1e-3)
