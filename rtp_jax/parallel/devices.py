"""On which devices does an engine run, and what does each of them hold?

`LoneDevice` holds everything.  `DeviceMesh` divides arrays by a `PartitionSpec` each, and runs a
program as one function of what every device holds (`jax.shard_map`): kernels see arrays of one
device, and only layers that sum or collect know that there are others.

A tree of specs may stand for a larger tree: what hangs below a spec is divided alike.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rtp_jax.parallel.axes import COPY, MESH_AXES, TENSOR, MeshShape

Device = Any  # a jax.Device, which type checkers do not accept as a type
Specs = Any  # a pytree of PartitionSpec
Shapes = Any  # a pytree of jax.ShapeDtypeStruct
WHOLE = PartitionSpec()  # every device has all of it


class Devices(Protocol):
    """The devices of an engine."""

    every: tuple[Device, ...]
    shape: MeshShape

    @property
    def mesh(self) -> Mesh | None:
        """The devices as jax arranges them, or None if there is but one."""
        ...

    def put(self, array: np.ndarray, spec: PartitionSpec = WHOLE) -> jax.Array:
        """Bring an array of the host to the devices."""
        ...

    def described(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Say of whole arrays where they lie, for the compiler."""
        ...

    def local(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Give the shapes of what one device has of whole arrays."""
        ...

    def over(self, function: Callable, in_specs: Specs, out_specs: Specs) -> Callable:
        """Turn a function of what one device has into one of whole arrays, to be compiled."""
        ...

    def at_work(self) -> contextlib.AbstractContextManager[object]:
        """Compile here whatever names no device."""
        ...


class LoneDevice:
    """One device, which has everything whole."""

    def __init__(self, device: Device):
        self.every: tuple[Device, ...] = (device,)
        self.shape = MeshShape()

    @property
    def mesh(self) -> Mesh | None:
        """Give none: nothing is shared."""
        return None

    def put(self, array: np.ndarray, spec: PartitionSpec = WHOLE) -> jax.Array:
        """Bring an array of the host to the device."""
        return jax.device_put(array, self.every[0])

    def described(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Leave shapes as they are."""
        return shapes

    def local(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Leave shapes as they are."""
        return shapes

    def over(self, function: Callable, in_specs: Specs, out_specs: Specs) -> Callable:
        """Leave the function as it is."""
        return function

    def at_work(self) -> contextlib.AbstractContextManager[object]:
        """Compile for the device."""
        return jax.default_device(self.every[0])


class DeviceMesh:
    """Several devices of one process, of which each has its part."""

    def __init__(self, devices: Sequence[Device], shape: MeshShape):
        assert len(devices) == shape.size > 1, f"{len(devices)} devices for {shape}"
        self.every, self.shape = tuple(devices), shape
        self._mesh = Mesh(np.array(devices).reshape(shape), (TENSOR, COPY))

    @property
    def mesh(self) -> Mesh | None:
        """Give the devices as jax arranges them."""
        return self._mesh

    def put(self, array: np.ndarray, spec: PartitionSpec = WHOLE) -> jax.Array:
        """Bring each device its part of an array of the host."""
        return jax.device_put(array, NamedSharding(self._mesh, spec))

    def described(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Say of whole arrays where they lie, for the compiler."""

        def placed(spec: PartitionSpec, one: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            sharding = NamedSharding(self._mesh, spec)
            return jax.ShapeDtypeStruct(one.shape, one.dtype, sharding=sharding)

        return _with_specs(placed, specs, shapes)

    def local(self, shapes: Shapes, specs: Specs) -> Shapes:
        """Give the shapes of what one device has of whole arrays."""

        def part(spec: PartitionSpec, one: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = NamedSharding(self._mesh, spec).shard_shape(one.shape)
            return jax.ShapeDtypeStruct(shape, one.dtype)

        return _with_specs(part, specs, shapes)

    def over(self, function: Callable, in_specs: Specs, out_specs: Specs) -> Callable:
        """Turn a function of what one device has into one of whole arrays, to be compiled.

        That devices agree on results which every one of them has is for `function` to see to.
        """
        return jax.shard_map(
            function, mesh=self._mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
        )

    def at_work(self) -> contextlib.AbstractContextManager[object]:
        """Leave it to the arguments, which name their devices."""
        return contextlib.nullcontext()


def spec_of(axes: Sequence[str]) -> PartitionSpec:
    """Say how an array with these logical axes is divided."""
    names = [tuple(name for name in MESH_AXES[axis] if name in (TENSOR, COPY)) for axis in axes]
    return PartitionSpec(*(several or None for several in names))


def _with_specs(change: Callable, specs: Specs, shapes: Shapes) -> Shapes:
    def below(spec: PartitionSpec, tree: Shapes) -> Shapes:
        return jax.tree.map(lambda one: change(spec, one), tree)

    return jax.tree.map(below, specs, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))
