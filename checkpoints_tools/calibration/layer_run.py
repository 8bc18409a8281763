"""One layer of a model, run by the engine's own modules: what its matrices are given, and make.

A layer is two halves that are alike: a norm, some maps, something between, and a map back that
adds to the residual stream.

    half         norm            maps                 between        back
    attention    attention_norm  query, key, value    attention      output
    mlp          mlp_norm        gate, up             silu(gate) up  down

Everything is float32 and runs in XLA on the CPU, so a layer gives the same numbers each time.

Read next: `halves.py`.
"""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints_tools.calibration.steps import PAGE_SIZE, Step, num_pages
from rtp_jax.kernels.pages import KVGroup, StepInputs
from rtp_jax.layers.decoder import EVERYTHING, DecoderLayer
from rtp_jax.layers.linear import Place
from rtp_jax.layers.rope import rotation
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.runner.device import find_devices

VALUES = ".values"  # how the path of a matrix's numbers ends
HERE = Place(jnp.int32(0), None, stack=0)
Weights = Mapping[str, np.ndarray]  # by path in a layer, such as `mlp.up.kernel`


Function = Callable[..., jax.Array]  # of a layer, the residual stream and `Around`


class Around(NamedTuple):
    """What a layer is told besides the residual stream."""

    inputs: StepInputs
    window: jax.Array
    given: jax.Array | None = None  # the input of the map back, for the last of `Programs`


class Programs(NamedTuple):
    """What one half of a layer does."""

    enter: Function  # the normalised input, which the maps are given
    between: Function  # what the map back is given
    back: Function  # the residual stream behind the half


class Model(NamedTuple):
    """What programs are compiled for: all layers of a model differ in numbers only."""

    graph: nnx.GraphDef
    tree: Hashable
    spec: ModelSpec


class LayerRun:
    """Runs any layer of a model."""

    def __init__(self, spec: ModelSpec):
        self._device = find_devices("cpu").device
        target = Target(
            "cpu", np.dtype(np.float32), attention="xla_cpu", matmul="xla", own_arrays=True
        )
        one = replace(spec, num_layers=1, windows=(None,), quantization=None)
        build = architecture(spec.architecture).build
        layer = nnx.eval_shape(lambda: build(one, target).layers[0])
        graph, state = nnx.split(layer)
        flat = nnx.to_flat_state(state)
        self._model = Model(graph, jax.tree.structure(state), one)
        self.spec = spec
        self.paths = [".".join(map(str, path)).removesuffix(VALUES) for path, _ in flat]
        self.shapes = {p: v.get_value().shape for p, (_, v) in zip(self.paths, flat, strict=True)}

    def run(
        self,
        function: Function,
        weights: Weights,
        x: np.ndarray,
        step: Step,
        window: int | None,
        given: np.ndarray | None = None,
    ) -> np.ndarray:
        """Run a function of `Programs` over the residual stream [tokens, hidden] of a step."""
        leaves = [weights[path] for path in self.paths]
        with jax.default_device(self._device):
            made = None if given is None else jnp.asarray(given)
            around = Around(step.inputs, jnp.int32(window or EVERYTHING), made)
            return np.asarray(_run(leaves, x, around, function=function, model=self._model))

    def half(
        self, programs: Programs, weights: Weights, x: np.ndarray, step: Step, window: int | None
    ) -> np.ndarray:
        """Run one half of a layer."""
        given = self.run(programs.between, weights, x, step, window)
        return self.run(programs.back, weights, x, step, window, given)


@functools.partial(jax.jit, static_argnames=("function", "model"))
def _run(leaves, x, around: Around, *, function: Function, model: Model):
    layer = nnx.merge(model.graph, jax.tree.unflatten(model.tree, leaves))
    return function(layer, x, around, model.spec)


def _enter_attention(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    return layer.attention_norm(x, HERE)


def _mix(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    shape = num_pages(len(x)), 1, 2, spec.num_kv_heads, PAGE_SIZE, spec.head_dim
    mixed, _ = layer.attention.mix(
        layer.attention_norm(x, HERE),
        KVGroup(jnp.zeros(shape, x.dtype), None),
        HERE,
        around.inputs,
        turn=rotation(spec.rope, around.inputs.positions[0]),
        window=around.window,
    )
    return mixed


def _add_attention(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    assert around.given is not None
    return layer.attention.output.add_to(x, around.given, HERE)


def _enter_mlp(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    return layer.mlp_norm(x, HERE)


def _widen(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    return layer.mlp.widened(layer.mlp_norm(x, HERE), HERE)


def _add_mlp(layer: DecoderLayer, x, around: Around, spec: ModelSpec):
    assert around.given is not None
    return layer.mlp.down.add_to(x, around.given, HERE)


PROGRAMS = {
    "attention": Programs(_enter_attention, _mix, _add_attention),
    "mlp": Programs(_enter_mlp, _widen, _add_mlp),
}
