"""Ways to keep a model, and what each may cost.

All compute in bfloat16 and are compared with the first of them, in which nothing is quantized.
Read next: `answers.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rtp_jax.errors import InvalidArgument

PLAIN = "bfloat16"
# The share of the loss that weights, calibrated weights and KV may add.
WEIGHTS, CALIBRATED, KV = 0.005, 0.03, 0.002
OF_CHECKPOINTS = {"gptq": CALIBRATED, "awq": CALIBRATED}
OF_CHECKPOINTS |= {"int8": WEIGHTS, "int8_dynamic": WEIGHTS, "fp8": WEIGHTS}


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to keep a model."""

    name: str
    options: dict[str, object] = field(default_factory=dict)  # of the engine
    may_add: float | None = None  # to the loss, as a share of it
    folder: Path | None = None  # of a checkpoint that is this model, quantized


def usual_arms(adaptive: dict[str, str]) -> list[Arm]:
    """List what is always measured; `adaptive` names choices of layers, as `kv_layers` takes."""
    return [
        Arm(PLAIN),
        Arm("int8", {"quantization": "int8"}, WEIGHTS),
        Arm("int8_dynamic", {"quantization": "int8_dynamic"}, WEIGHTS),
        Arm("fp8", {"quantization": "fp8"}, WEIGHTS),
        Arm("int4, rounded", {"quantization": "int4"}),
        Arm("KV int8", {"kv_dtype": "int8"}, KV),
        Arm("KV fp8", {"kv_dtype": "fp8"}, KV),
        *(Arm(name, {"kv_layers": words}, KV) for name, words in adaptive.items()),
        Arm("int8_dynamic, KV int8", {"quantization": "int8_dynamic", "kv_dtype": "int8"}),
    ]


def checkpoint_arms(given: Sequence[str]) -> list[Arm]:
    """Read `NAME=FOLDER`; what a checkpoint may cost goes by the first word of its name.

    Raises:
      InvalidArgument: RTPJ-1101, it cannot be read, or there is no such checkpoint.
    """
    arms = []
    for each in given:
        name, _, folder = each.partition("=")
        if not name or not (Path(folder) / "config.json").is_file():
            raise InvalidArgument(
                f"RTPJ-1101 CONFIG_INVALID: --checkpoint={each!r} is not allowed; it must be"
                " NAME=FOLDER, the folder one with a config.json.",
                field="checkpoint",
            )
        word = name.split()[0].rstrip(",")
        arms.append(Arm(name, may_add=OF_CHECKPOINTS.get(word), folder=Path(folder)))
    return arms
