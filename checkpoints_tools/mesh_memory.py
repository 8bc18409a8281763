"""What does each device of a mesh hold, and how many tokens of KV fit beside the weights?

One device: the engine's own plan.  Several, along the axis `tensor`: matrices, embedding and heads
are divided (`rtp_jax/parallel/axes.py`), norms are held whole, and KV heads are repeated where
there are more devices than heads.  This is an estimate for a mesh that the engine may not run yet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rtp_jax.config import EngineConfig
from rtp_jax.errors import InvalidArgument, RtpError
from rtp_jax.runner.memory_plan import plan_memory

MB = 1e6
INTEGERS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_memory")
SETTINGS = ("dtype", "quantization", "head_quantization", "kv_dtype", "kv_layers", *INTEGERS)
HEADER = "devices       weights MB   workspace MB   KV tokens   KV MB   context"


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
        dtype = build.DeviceFacts(None, platform, None).best_dtype
    kv_dtype = dtype if config.cache.kv_dtype == "auto" else config.cache.kv_dtype
    schemes = build.schemes_of(config.model.quantization, config.model.head_quantization)
    kv = build.kv_layers(spec.num_layers, kv_dtype, config.cache.kv_layers)
    whole = build.model_memory(spec, schemes, dtype, kv)
    rows = []
    for size in sizes:
        row: dict[str, Any] = {"devices": size, "dtype": dtype, "kv_dtype": kv.describe()}
        if spec.num_heads % size or spec.mlp_size % size or _uneven(spec.num_kv_heads, size):
            rows.append({**row, "obstacle": f"{size} devices do not divide the model's heads"})
            continue
        try:
            plan = plan_memory(
                share(whole, spec, size),
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
            "kv_bytes": plan.kv_bytes,
            "kv_tokens": (plan.num_pages - 1) * plan.page_size,
            "max_model_len": plan.max_model_len,
            "available_bytes": plan.available_bytes,
        }
        rows.append(row)
    return rows


def share(whole: Any, spec: Any, size: int) -> Any:
    """Describe the part of a model that one of `size` devices holds."""
    kv_heads = max(1, spec.num_kv_heads // size)
    norms = spec.num_layers * (2 * spec.hidden_size + 2 * spec.head_norm * spec.head_dim)
    norm_bytes = (norms + spec.hidden_size) * whole.itemsize
    repeated = kv_heads * size / spec.num_kv_heads - 1  # KV heads that a device holds too
    kv_numbers = spec.num_layers * 2 * spec.hidden_size * spec.num_kv_heads * spec.head_dim
    per_number = whole.weight_bytes / spec.num_parameters
    divided = whole.weight_bytes - norm_bytes + repeated * kv_numbers * per_number
    return replace(
        whole,
        weight_bytes=whole.weight_bytes if size == 1 else round(norm_bytes + divided / size),
        num_heads=spec.num_heads // size,
        num_kv_heads=kv_heads,
        mlp_size=spec.mlp_size // size,
    )


def _uneven(kv_heads: int, size: int) -> bool:
    return bool(kv_heads % size) if kv_heads >= size else bool(size % kv_heads)


def _value(name: str, text: str) -> object:
    if name not in INTEGERS:
        return None if text == "none" and name == "quantization" else text
    if not text.isdecimal():
        raise InvalidArgument(
            f"RTPJ-1202 SETTING_UNREADABLE: --{name.replace('_', '-')} is {text[:80]!r}; it is an"
            " integer. Write it as one.",
            field=name,
        )
    return int(text)


def line(row: Mapping[str, Any]) -> str:
    """Lay one row out for a reader."""
    if "obstacle" in row:
        return f"{row['devices']:>7}       {row['obstacle']}"
    weights, workspace = row["weight_bytes"] / MB, row["workspace_bytes"] / MB
    return (
        f"{row['devices']:>7} {weights:>16.1f} {workspace:>14.1f} {row['kv_tokens']:>11}"
        f" {row['kv_bytes'] / MB:>7.1f} {row['max_model_len']:>9}"
    )
