"""Compiles a program to sm_90a machine code on a machine without a GPU.

Only inside a process whose environment `plugins.environment` has prepared.  jax's CUDA plugin
compiles for a description of an H200, `h200.txtpb`; arrays stay on the CPU, and nothing can run.
"""

import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies

from rtp_jax.runner.programs import Program

DESCRIPTION = Path(__file__).parent / "h200.txtpb"


class CompiledForGPU(NamedTuple):
    """A program in machine code, and what making it took."""

    compiled: jax.stages.Compiled
    lower_s: float
    compile_s: float


class Target:
    """An H200 that is not there."""

    def __init__(self):
        jax.devices()  # the backend of the CPU first: it keeps the arrays
        topology = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            target_config=DESCRIPTION.read_text(),
            topology="1x1x1",
        )
        self._sharding = jax.sharding.SingleDeviceSharding(topology.devices[0])
        mesh = jax.sharding.Mesh(
            np.array(topology.devices), ("device",), axis_types=(jax.sharding.AxisType.Auto,)
        )
        self._mesh = mesh.abstract_mesh

    def compile(self, program: Program) -> CompiledForGPU:
        """Compile as `rtp_jax.runner.programs` does, but for the GPU."""
        arguments = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._sharding),
            program.arguments,
        )
        jitted = jax.jit(program.function, donate_argnums=program.donated, keep_unused=True)
        began = time.monotonic()
        with jax.sharding.use_abstract_mesh(self._mesh):  # tells kernels which device it is
            lowered = jitted.trace(*arguments).lower(lowering_platforms=("cuda",))
        lowered_at = time.monotonic()
        compiled = lowered.compile()
        return CompiledForGPU(compiled, lowered_at - began, time.monotonic() - lowered_at)
