"""How do gradients change the parameters?  Muon for matrices, Adam for all else.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by the nearest orthogonal one, found
by five Newton-Schulz iterations; on a small model it needs about a third fewer steps than AdamW.
`train.py` calls `update` once a step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from tools.rtp_tiny.matmul import transposed
from tools.rtp_tiny.model import TinyConfig, init_params

ADAM_RATE = 0.004
MUON_RATE = 0.02
MUON_MOMENTUM = 0.95
ADAM_BETAS = (0.9, 0.98)
WEIGHT_DECAY = 0.02
MUON_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class TrainState(NamedTuple):
    """All that a step reads and writes; a checkpoint is exactly this."""

    params: dict[str, Array]
    first: dict[str, Array]
    second: dict[str, Array]
    step: Array


def init_state(config: TinyConfig, seed: int) -> TrainState:
    """Draw the parameters from `seed`; moments start at zero."""
    params = init_params(config, jax.random.key(seed))
    first = {name: jnp.zeros_like(value) for name, value in params.items()}
    second = {n: jnp.zeros_like(v) for n, v in params.items() if n not in MUON_NAMES}
    return TrainState(params, first, second, jnp.zeros((), jnp.int32))


def update(state: TrainState, gradients: dict[str, Array], scale: Array) -> TrainState:
    """Apply one step; `scale` in 0..1 is the schedule's share of the learning rates."""
    step = state.step + 1
    params, first, second = {}, {}, {}
    for name, gradient in gradients.items():
        value = state.params[name]
        if name in MUON_NAMES:
            first[name] = MUON_MOMENTUM * state.first[name] + gradient
            direction = _orthogonal(gradient + MUON_MOMENTUM * first[name])
            direction *= max(1.0, value.shape[2] / value.shape[1]) ** 0.5
            params[name] = value * (1 - scale * MUON_RATE * WEIGHT_DECAY)
            params[name] -= scale * MUON_RATE * direction
            continue
        beta1, beta2 = ADAM_BETAS
        first[name] = beta1 * state.first[name] + (1 - beta1) * gradient
        second[name] = beta2 * state.second[name] + (1 - beta2) * gradient**2
        mean = first[name] / (1 - beta1**step)
        deviation = jnp.sqrt(second[name] / (1 - beta2**step)) + 1e-8
        params[name] = value - scale * ADAM_RATE * mean / deviation
    return TrainState(params, first, second, step)


def _orthogonal(matrices: Array) -> Array:
    """Push the singular values of each [layers, in, out] matrix towards one."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.swapaxes(1, 2)
    x = (x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-7)).astype(jnp.bfloat16)
    for _ in range(5):
        gram = x @ transposed(x)
        # Coefficients of the quintic polynomial of Jordan et al.
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.swapaxes(1, 2)).astype(jnp.float32)
