"""RMSNorm: against float64 NumPy, over the last of any number of axes."""

import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.target import Target


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-6), ("bfloat16", 4e-3)])
@pytest.mark.parametrize("shape", [(5, 32), (5, 3, 32)])
def test_norm_is_right(shape, dtype, rtol):
    rng = np.random.default_rng(0)
    norm = RMSNorm(("embed", 32), eps=1e-3, target=Target("cpu", jnp.dtype(dtype)))
    norm.scale.set_value(jnp.asarray(rng.normal(size=32), dtype))
    x = jnp.asarray(100 * rng.normal(size=shape), dtype)
    wide = np.float64(x)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * np.float64(norm.scale[...])
    actual = norm(x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(np.float64(actual), exact, rtol=rtol)


def test_tiny_vectors_do_not_explode():
    norm = RMSNorm(("embed", 4), eps=1e-6, target=Target("cpu", jnp.dtype("float32")))
    norm.scale.set_value(jnp.ones(4))
    assert (norm(jnp.zeros((8, 4))) == 0).all()
