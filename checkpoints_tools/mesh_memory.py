"""What does each device of a mesh hold, and how many tokens of KV fit beside the weights?

Each device has a memory of its own; how they share a model is in `rtp_jax/engine/sharing.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rtp_jax.config import EngineConfig
from rtp_jax.errors import InvalidArgument, RtpError
from rtp_jax.late_imports import late
from rtp_jax.runner.memory_plan import plan_memory

sharing = late("rtp_jax.engine.sharing")
devices = late("rtp_jax.runner.device")  # and jax
MB = 1e6
INTEGERS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_memory")
BOOLEANS = {"true": True, "false": False}
SWITCHES = ("deterministic", "skip_tokenizer_init")
SETTINGS = ("dtype", "quantization", "head_quantization", "kv_dtype", "kv_layers", *INTEGERS)
SETTINGS += SWITCHES
HEADER = "devices       weights MB   workspace MB   KV tokens   KV MB   together MB   context"


def estimates(
    build: Any,
    spec: Any,
    settings: Mapping[str, str | None],
    sizes: Sequence[int],
    *,
    platform: str,
    device_bytes: int | None,
) -> list[dict[str, Any]]:
    """Plan the memory of one device for each size of mesh.

    Args:
      build: the module `rtp_jax.engine.build`.
      spec: the model.
      settings: of the engine, as text; None: not given.
      sizes: numbers of devices.
      platform: cpu or cuda.
      device_bytes: memory of each device; None: this machine's.
    """
    options = {name: _value(name, text) for name, text in settings.items() if text is not None}
    config = EngineConfig.from_options(**options)
    dtype = config.model.dtype
    if dtype == "auto":
        dtype = devices.DeviceFacts(None, platform, None).best_dtype
    kv_dtype = dtype if config.cache.kv_dtype == "auto" else config.cache.kv_dtype
    schemes = build.schemes_of(config.model.quantization, config.model.head_quantization)
    kv = build.kv_layers(spec.num_layers, kv_dtype, config.cache.kv_layers)
    packed = build.packs(config.runner, platform)
    whole = build.model_memory(spec, schemes, dtype, kv, packed=packed)
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"devices": size, "dtype": dtype, "kv_dtype": kv.describe()}
        try:
            plan = plan_memory(
                sharing.share(whole, spec, sharing.mesh_of(spec, size)),
                model=config.model,
                cache=config.cache,
                scheduler=config.scheduler,
                platform=platform,
                free_device_bytes=device_bytes,
            )
        except RtpError as reason:
            rows.append({**row, "obstacle": str(reason)})
            continue
        row |= {
            "weight_bytes": plan.weight_bytes,
            "workspace_bytes": plan.workspace_bytes,
            "workspace": dict(plan.workspace),
            "kv_bytes": plan.kv_bytes,
            "kv_tokens": (plan.num_pages - 1) * plan.page_size,
            "max_model_len": plan.max_model_len,
            "array_bytes": plan.array_bytes,
            "total_bytes": plan.total_bytes,
            "after_compiling_bytes": plan.after_compiling_bytes,
            "available_bytes": plan.available_bytes,
        }
        rows.append(row)
    return rows


def _value(name: str, text: str) -> object:
    if name in SWITCHES:
        return _switch(name, text)
    if name not in INTEGERS:
        return None if text == "none" and name == "quantization" else text
    if not text.isdecimal():
        raise InvalidArgument(
            f"RTPJ-1202 SETTING_UNREADABLE: --{name.replace('_', '-')} is {text[:80]!r}; it is an"
            " integer. Write it as one.",
            field=name,
        )
    return int(text)


def _switch(name: str, text: str) -> bool:
    if text not in BOOLEANS:
        raise InvalidArgument(
            f"RTPJ-1202 SETTING_UNREADABLE: --{name.replace('_', '-')} is {text[:80]!r}. Write true"
            " or false.",
            field=name,
        )
    return BOOLEANS[text]


def line(row: Mapping[str, Any]) -> str:
    """Lay one row out for a reader."""
    if "obstacle" in row:
        return f"{row['devices']:>7}       {row['obstacle']}"
    weights, workspace = row["weight_bytes"] / MB, row["workspace_bytes"] / MB
    return (
        f"{row['devices']:>7} {weights:>16.1f} {workspace:>14.1f} {row['kv_tokens']:>11}"
        f" {row['kv_bytes'] / MB:>7.1f} {row['total_bytes'] / MB:>13.1f} {row['max_model_len']:>9}"
    )
