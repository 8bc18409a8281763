"""Which programs pass the gate, and what is expected of each.

    kernel/NAME            one of our kernels alone
    step/MODEL/BUCKET      the engine's step for the first two layers of a model
    whole/MODEL/BUCKET     the same with all layers, every bucket: only in the full set

Steps are described exactly as the engine describes them for an H200: page size, pages, context and
buckets come from its own memory plan and lattice.  Nothing is allocated.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rtp_jax.config import CacheConfig, ModelConfig, SchedulerConfig
from rtp_jax.engine.build import model_memory
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.models.spec import ModelSpec
from rtp_jax.parallel.devices import LoneDevice
from rtp_jax.quant.kv_schemes import KVLayers, kv_layers
from rtp_jax.quant.schemes import SCHEMES, schemes_of
from rtp_jax.runner.buckets import Bucket, lattice
from rtp_jax.runner.kv_arrays import kv_arrays
from rtp_jax.runner.memory_plan import MemoryPlan, plan_memory
from rtp_jax.runner.programs import Program
from rtp_jax.runner.runner import Runner, StepShapes
from tools.gpu_gate.kernels import ATTENTION, MATMUL, kernel_cases
from tools.gpu_gate.report import Expectation
from tools.model_shapes import config_of

DTYPE = "bfloat16"
FREE_BYTES = 130 * 10**9  # of an H200, with nothing on it but the runtime
NUM_LAYERS = 2


class Variant(NamedTuple):
    """A model, or what one device has of it, with or without a scheme for its matrices."""

    base: str
    shards: int = 1
    scheme: str | None = None
    kv: str = DTYPE
    checkpoint: dict[str, Any] | None = None  # its `quantization_config`

    def kv_layers(self, spec: ModelSpec) -> KVLayers:
        """How the layers of the model, or the first of them, keep KV."""
        return kv_layers(spec.num_layers, self.kv)

    @property
    def spec(self) -> ModelSpec:
        """What is built."""
        config = config_of(self.base)
        if self.checkpoint is not None:
            config["quantization_config"] = self.checkpoint
        spec = read_spec(config)
        return spec if self.shards == 1 else tensor_shard(spec, self.shards)

    @property
    def kernels(self) -> tuple[str, ...]:
        """What every step must call, whatever its size: decode rows and chunks meet in any."""
        return ATTENTION + (MATMUL if self.scheme or self.checkpoint else ())


CHECKPOINTS = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"},
    "gptq-32": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False},
    "fp8-block": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}
VARIANTS = {
    "llama-3.1-8b": Variant("llama-3.1-8b"),
    "qwen3-0.6b": Variant("qwen3-0.6b"),
    "qwen3-8b": Variant("qwen3-8b"),
    "qwen3-32b": Variant("qwen3-32b"),
    "qwen3-32b-shard-of-8": Variant("qwen3-32b", shards=8),
    **{f"llama-3.1-8b-{scheme}": Variant("llama-3.1-8b", scheme=scheme) for scheme in SCHEMES},
    **{
        f"llama-3.1-8b-{name}": Variant("llama-3.1-8b", checkpoint=CHECKPOINTS[name])
        for name in CHECKPOINTS
    },
    **{f"llama-3.1-8b-kv-{kv}": Variant("llama-3.1-8b", kv=kv) for kv in ("int8", "fp8")},
}
# Of the first every kind of bucket is compiled at every test run, of the others one step that mixes
# prefill with decode, and of other schemes the kernels alone, which compile many times faster.
QUICK_MODEL = "llama-3.1-8b"
QUICK_STEPS = {"qwen3-0.6b", "qwen3-8b", "qwen3-32b", "qwen3-32b-shard-of-8"}
QUICK_STEPS |= {"llama-3.1-8b-int8", "llama-3.1-8b-kv-int8"}


class Case(NamedTuple):
    """A program, made only when it is compiled, and what is expected of it."""

    make: Callable[[], Program]
    expected: Expectation
    is_quick: bool = True  # part of every test run

    def num_weights(self, program: Program) -> int:
        """How many arrays are weights."""
        return len(jax.tree.leaves(program.arguments[0])) if self.expected.has_weights else 0


@functools.cache
def catalogue() -> dict[str, Case]:
    """List every program by name."""
    cases = {name: Case(*case) for name, case in kernel_cases().items()}
    for model in VARIANTS:
        cases |= _steps(model, "step", NUM_LAYERS)
    for model in VARIANTS:
        cases |= _steps(model, "whole", None)
    return cases


def quick() -> list[str]:
    """List what every test run compiles."""
    return [name for name, case in catalogue().items() if case.is_quick]


def first_layers(spec: ModelSpec, num_layers: int) -> ModelSpec:
    """Keep only the first layers of a model."""
    return dataclasses.replace(spec, num_layers=num_layers, windows=spec.windows[:num_layers])


def tensor_shard(spec: ModelSpec, shards: int) -> ModelSpec:
    """Cut heads, MLP and vocabulary as tensor parallelism does: the part of one device."""
    for size in (spec.num_heads, spec.num_kv_heads, spec.mlp_size, spec.vocab_size):
        assert size % shards == 0, f"{size} does not divide into {shards} shards"
    return dataclasses.replace(
        spec,
        num_heads=spec.num_heads // shards,
        num_kv_heads=spec.num_kv_heads // shards,
        mlp_size=spec.mlp_size // shards,
        vocab_size=spec.vocab_size // shards,
    )


def planned(variant: Variant) -> MemoryPlan:
    """Divide the memory of an H200 as the engine does."""
    spec = variant.spec
    return plan_memory(
        model_memory(spec, schemes_of(variant.scheme), DTYPE, variant.kv_layers(spec)),
        model=ModelConfig(),
        cache=CacheConfig(),
        scheduler=SchedulerConfig(),
        platform="cuda",
        free_device_bytes=FREE_BYTES,
    )


def runner_of(variant: Variant, spec: ModelSpec, plan: MemoryPlan) -> Runner:
    """Describe a runner for the GPU: neither weights nor pages exist."""
    matrices, head = schemes_of(variant.scheme)
    target = Target("cuda", jnp.dtype(DTYPE), scheme=matrices, head_scheme=head)
    bones = skeleton(spec, target)
    scheduler = SchedulerConfig()
    shapes = StepShapes(
        buckets=buckets(),
        kv=kv_arrays(
            spec,
            variant.kv_layers(spec),
            num_pages=plan.num_pages,
            page_size=plan.page_size,
        ),
        num_slots=scheduler.max_num_seqs,
        max_model_len=plan.max_model_len,
        page_size=plan.page_size,
        vocab_size=spec.vocab_size,
        padded_vocab_size=spec.vocab_size,
    )
    weights = [jax.ShapeDtypeStruct(p.shape, p.dtype) for p in bones.held.values()]
    devices = LoneDevice(jax.devices("cpu")[0])
    return Runner(weights=weights, build=bones.assemble, shapes=shapes, devices=devices)


def buckets() -> tuple[Bucket, ...]:
    """The lattice of a default engine."""
    scheduler = SchedulerConfig()
    return lattice(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, deterministic=False)


def _chosen(model: str) -> set[Bucket]:
    """The smallest bucket, the largest, and the first that mixes prefill with decode."""
    known = buckets()
    mixed = next(bucket for bucket in known if bucket.tokens > bucket.sequences)
    if model == QUICK_MODEL:
        return {known[0], mixed, known[-1]}
    return {mixed} if model in QUICK_STEPS else set()


def _steps(model: str, kind: str, num_layers: int | None) -> dict[str, Case]:
    """Describe the steps of a model; the number of pages is that of the whole model."""
    variant = VARIANTS[model]
    spec = variant.spec if num_layers is None else first_layers(variant.spec, num_layers)
    plan = planned(variant)
    expected = expectation(variant, spec, plan)
    return {
        f"{kind}/{model}/{bucket}": Case(
            functools.partial(step_program, variant, spec, plan, bucket),
            expected,
            num_layers is not None and bucket in _chosen(model),
        )
        for bucket in buckets()
    }


def expectation(variant: Variant, spec: ModelSpec, plan: MemoryPlan) -> Expectation:
    """Say what a step of a model must be like; its temporaries fit where the plan put them."""
    pages = int(np.prod((plan.num_pages, *spec.kv_page_shape(plan.page_size))))
    (held,) = variant.kv_layers(spec).groups
    room = sum(size for what, size in plan.workspace if what != "history")
    return Expectation(
        kernels=variant.kernels,
        kv_bytes=pages * held.itemsize,
        max_temp_bytes=room,
        has_weights=True,
    )


def step_program(variant: Variant, spec: ModelSpec, plan: MemoryPlan, bucket: Bucket) -> Program:
    """Describe one step as the runner does."""
    programs = runner_of(variant, spec, plan).programs()
    return next(program for program in programs if program.name == f"step-{bucket}")
