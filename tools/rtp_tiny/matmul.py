"""How does training multiply matrices fast on a CPU?  In bfloat16, without transposed views.

XLA's CPU backend reaches the bfloat16 matrix units only for plain row-major operands: a product
with a transposed view is five times slower.  So the gradients copy what they transpose.
"""

import jax
import jax.numpy as jnp
from jax import Array


@jax.custom_vjp
def matmul(left: Array, right: Array) -> Array:
    """Multiply [..., m, k] by [..., k, n] in bfloat16, with sums in float32."""
    return _product(left.astype(jnp.bfloat16), right.astype(jnp.bfloat16))


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right).astype(jnp.float32)


def _forward(left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    left, right = left.astype(jnp.bfloat16), right.astype(jnp.bfloat16)
    return _product(left, right), (left, right)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    left, right = saved
    gradient = gradient.astype(jnp.bfloat16)
    of_left = _product(gradient, transposed(right))
    if left.size <= gradient.size:
        return of_left, _product(transposed(left), gradient)
    # The same product the other way round, where copying `left` would cost more.
    return of_left, _product(transposed(gradient), left).swapaxes(-1, -2)


def transposed(matrix: Array) -> Array:
    """Copy a matrix with its last two axes swapped; the flat shape makes XLA really move it."""
    swapped = matrix.swapaxes(-1, -2)
    return jax.lax.optimization_barrier(swapped.reshape(-1)).reshape(swapped.shape)


matmul.defvjp(_forward, _backward)
