"""What is settled about an engine before anything large is loaded; `build.py` decides it."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_jax.config import EngineConfig
from rtp_jax.engine.info import ModelInfo
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.kv_schemes import KVLayers
from rtp_jax.runner.device import DeviceFacts
from rtp_jax.runner.memory_plan import MemoryPlan
from rtp_jax.runner.runner import Runner
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """What is settled before anything large is loaded."""

    name: str
    folder: Path
    spec: ModelSpec
    facts: DeviceFacts
    dtype: str
    kv: KVLayers
    memory: MemoryPlan
    tokenizer: Tokenizer | None
    templates: dict[str, Any]  # of `ChatTemplate`, by name
    default_params: SamplingParams


def info_of(
    config: EngineConfig,
    decided: Decided,
    runner: Runner,
    eos: frozenset[int],
    print_of_model: str,
) -> ModelInfo:
    """Describe an engine that is being built, under a new epoch."""
    shapes = runner.shapes
    return ModelInfo(
        name=decided.name,
        architecture=decided.spec.architecture,
        vocab_size=shapes.vocab_size,
        max_model_len=shapes.max_model_len,
        dtype=decided.dtype,
        kv_dtype=decided.kv.describe(),
        page_size=shapes.page_size,
        num_pages=decided.memory.num_pages,
        max_num_seqs=config.scheduler.max_num_seqs,
        eos_token_ids=tuple(sorted(eos)),
        default_sampling_params=decided.default_params,
        fingerprint=print_of_model,
        epoch=secrets.token_hex(8),
        platform=decided.facts.platform,
        tensor_parallel_size=decided.facts.devices.shape.size,
        num_parameters=decided.spec.num_parameters,
        buckets=tuple(map(str, shapes.buckets)),
    )
