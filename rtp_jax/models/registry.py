"""Which architectures are there?  The name in `config.json` to config, modules and weight table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rtp_jax.errors import CheckpointError
from rtp_jax.late_imports import late
from rtp_jax.layers.target import Target
from rtp_jax.models import (
    llama,
    llama_weights,
    mistral,
    qwen2,
    qwen2_weights,
    qwen3,
    qwen3_weights,
)
from rtp_jax.models.dense_fields import architecture_of
from rtp_jax.models.fields import Fields
from rtp_jax.models.spec import ModelSpec
from rtp_jax.weights.table import WeightTable

dense = late("rtp_jax.models.dense")


def build_dense(spec: ModelSpec, target: Target) -> Any:
    """Build the modules of a dense decoder."""
    return dense.build_dense(spec, target)


@dataclass(frozen=True, slots=True)
class Architecture:
    """What it takes to run the checkpoints of one kind."""

    parse: Callable[[Fields], ModelSpec]
    build: Callable[[ModelSpec, Target], Any]  # an nnx.Module; call it under `nnx.eval_shape`
    weight_table: Callable[[ModelSpec], WeightTable]


# fmt: off
ARCHITECTURES = {
    "LlamaForCausalLM":   Architecture(llama.parse,   build_dense, llama_weights.weight_table),
    "MistralForCausalLM": Architecture(mistral.parse, build_dense, llama_weights.weight_table),
    "Qwen2ForCausalLM":   Architecture(qwen2.parse,   build_dense, qwen2_weights.weight_table),
    "Qwen3ForCausalLM":   Architecture(qwen3.parse,   build_dense, qwen3_weights.weight_table),
}
# fmt: on


def read_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Read the content of a `config.json`.

    Raises:
      CheckpointError: RTPJ-3201 to RTPJ-3205, with the field, its value and what is allowed.
    """
    fields = Fields(config)
    return architecture(architecture_of(fields)).parse(fields)


def architecture(name: str) -> Architecture:
    """Look up an architecture by its name in `config.json`."""
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"RTPJ-3205 ARCHITECTURE_UNKNOWN: config.json asks for {name[:200]!r}, which this "
            f"build does not have. Supported: {', '.join(ARCHITECTURES)}.",
            field="architectures",
        )
    return ARCHITECTURES[name]
