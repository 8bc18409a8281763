"""From a checkpoint to a runner that can execute: load, compile, run once.

Read next: `runner.py`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp

from rtp_jax.config import native_cache
from rtp_jax.errors import FailedPrecondition
from rtp_jax.kernels.native import library
from rtp_jax.kernels.native.build import source_hash
from rtp_jax.late_imports import late
from rtp_jax.layers.encoding import VALUES
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.models.structure import Skeleton, describe, described_skeleton
from rtp_jax.parallel.devices import Devices, spec_of
from rtp_jax.quant.kv_schemes import KVLayers
from rtp_jax.quant.schemes import Scheme
from rtp_jax.runner import kept_files
from rtp_jax.runner.buckets import Bucket
from rtp_jax.runner.device import DeviceFacts
from rtp_jax.runner.encoders import encoders
from rtp_jax.runner.kv_arrays import kv_arrays
from rtp_jax.runner.programs import environment_key
from rtp_jax.runner.runner import Runner, StepShapes
from rtp_jax.weights.convert import Allocate, aligned
from rtp_jax.weights.loader import LoadProgress, load
from rtp_jax.weights.spread import OneDevice, OverMesh, Spread

modules = late("rtp_jax.models.skeleton")  # and flax, which is slow to import

Progress = Callable[[str], None]
REPORT_EVERY = 0.1  # of the bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RunnerPlan:
    """Everything about the runner that was decided on the host."""

    dtype: str
    schemes: tuple[Scheme, Scheme]  # of the layers, and of the head
    attention: str  # implementations, by name
    matmul: str
    native: str  # level of the C++ kernels, "auto" or "off"
    skip_padding: bool
    kv: KVLayers
    num_pages: int
    page_size: int
    max_model_len: int
    num_slots: int
    vocab_size: int  # ids that may be sampled
    buckets: tuple[Bucket, ...]
    compile_cache: Path | None
    moves_pages: bool = False  # whether pages leave the device and come back


def start_runner(
    folder: Path,
    spec: ModelSpec,
    plan: RunnerPlan,
    facts: DeviceFacts,
    progress: Progress,
    *,
    allocate: Allocate = aligned,
) -> Runner:
    """Load the weights, prepare every program of the lattice and run each once."""
    _load_native(plan, facts, progress)
    target = _target(plan, facts)
    key = _hash(f"{environment_key(facts.devices)} {spec} {target} {source_hash()}")
    bones = _skeleton(spec, target, plan.compile_cache, key)
    table = architecture(spec.architecture).weight_table(spec)
    loaded = load(
        folder,
        table,
        bones.stored,
        encoders=encoders(bones),
        progress=_Reporter(progress),
        allocate=allocate,
        spread=spread_over(facts.devices, bones),
    )
    shapes = StepShapes(
        buckets=plan.buckets,
        kv=kv_arrays(spec, plan.kv, num_pages=plan.num_pages, page_size=plan.page_size),
        num_slots=plan.num_slots,
        max_model_len=plan.max_model_len,
        page_size=plan.page_size,
        vocab_size=plan.vocab_size,
        padded_vocab_size=spec.vocab_size,
    )
    runner = Runner(
        weights=bones.leaves(loaded),
        build=bones.assemble,
        shapes=shapes,
        devices=facts.devices,
        weight_specs=[spec_of(axes) for axes in bones.axes.values()],
        native=target.native,
        moves_pages=plan.moves_pages,
    )
    runner.compile(folder=plan.compile_cache, key=_hash(f"{key} {shapes}"), progress=progress)
    return runner


def spread_over(devices: Devices, bones: Skeleton) -> Spread:
    """Say which device gets what of each parameter."""
    if devices.mesh is None:
        return OneDevice(lambda _, array: devices.put(array))
    specs = {path: spec_of(axes) for path, axes in bones.axes.items()}
    # A matrix that is held as it is stored is loaded under its stored path.
    specs |= {path.removesuffix(VALUES): spec for path, spec in specs.items()}
    return OverMesh(devices.mesh, specs)


def _skeleton(spec: ModelSpec, target: Target, folder: Path | None, key: str) -> Skeleton:
    """Read the skeleton that an earlier start kept beside its programs, or build and keep it."""
    if folder is None:
        return modules.skeleton(spec, target)
    path = folder / f"skeleton-{key[:32]}"
    if description := kept_files.read(path):
        return described_skeleton(description.decode(), spec, target)
    built = modules.skeleton(spec, target)
    if description := describe(built):
        kept_files.write(path, description.encode())
    return built


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _target(plan: RunnerPlan, facts: DeviceFacts) -> Target:
    """Say what the layers are built for."""
    scheme, head_scheme = plan.schemes
    # A library may be there although it is not wanted: another engine of this process loaded it.
    kernels = library.loaded() if facts.platform == "cpu" and plan.native != "off" else None
    ours = facts.is_hopper if facts.platform == "cuda" else kernels is not None
    return Target(
        platform=facts.platform,
        dtype=jnp.dtype(plan.dtype),
        attention=plan.attention if ours or plan.attention != "auto" else "xla_cpu",
        matmul=plan.matmul if ours or plan.matmul != "auto" else "xla",
        scheme=scheme,
        head_scheme=head_scheme,
        native=None if kernels is None else kernels.level,
        skip_padding=plan.skip_padding,
        kv_groups=plan.kv.group_of,
        mesh=facts.devices.shape,
    )


def _load_native(plan: RunnerPlan, facts: DeviceFacts, progress: Progress) -> None:
    """Have the C++ kernels ready before layers ask for them, or say once why there are none."""
    if facts.platform == "cuda" and not facts.is_hopper:
        progress("our GPU kernels are for Hopper; on this GPU everything runs in XLA")
    if facts.platform != "cpu" or plan.native == "off":
        return
    reason = library.load(native_cache(), level=plan.native, report=progress)
    if reason and plan.native != "auto":
        raise FailedPrecondition(
            f"RTPJ-6010 NATIVE_UNAVAILABLE: native={plan.native} was asked for, and {reason}."
            " Leave native out to run the best there is, or set native=off.",
            field="native",
        )
    if reason:
        progress(f"no native kernels, so everything runs in XLA, which is slower: {reason}")


class _Reporter:
    """Says how far loading has come, about ten times."""

    def __init__(self, progress: Progress):
        self._progress = progress
        self._next = REPORT_EVERY

    def __call__(self, now: LoadProgress) -> None:
        share = now.bytes_done / max(now.bytes_total, 1)
        if share < min(self._next, 1.0):
            return
        self._next = share + REPORT_EVERY
        rate = now.bytes_done / max(now.seconds, 1e-9) / 1e9
        self._progress(
            f"loaded {now.bytes_done / 1e6:.0f} of {now.bytes_total / 1e6:.0f} MB"
            f" ({now.tensors_done} of {now.tensors_total} tensors, {rate:.2f} GB/s)"
        )
