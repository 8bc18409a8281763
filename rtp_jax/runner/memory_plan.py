"""How many KV pages fit: everything else is laid aside first, then pages take what is left.

    | weights | workspace |  KV pages  | free |

On a CPU the first three are what the whole process has resident at most while it serves, all pages
written, if it found its programs compiled.  Plain arithmetic on numbers, without jax, so that
`rtp-jax plan` works where no device is.  By default there are never more pages than are of use:
`max_num_seqs` sequences of `max_model_len` tokens, and as much again for finished prefixes if these
are kept.

Read next: `workspace.py`, `host_memory.py`.
"""

import dataclasses
import functools
from dataclasses import dataclass

from rtp_jax.config import CacheConfig, ModelConfig, SchedulerConfig
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.quant.kv_schemes import KV_SCHEMES, KVLayers
from rtp_jax.runner.host_memory import host_memory
from rtp_jax.runner.workspace import AFTER_COMPILING, LYING, ModelMemory, workspace

MIB, GIB = 1 << 20, 1 << 30
PAGE_SIZES = {"cpu": 16, "cuda": 64}
SMALLER_KV = {"float32": "bfloat16", "bfloat16": "int8"}  # what saves memory, and costs least


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """What was decided, and the numbers behind it."""

    platform: str
    page_size: int
    num_pages: int  # the null page included
    page_bytes: int
    max_model_len: int
    available_bytes: int
    weight_bytes: int
    workspace: tuple[tuple[str, int], ...]  # what for, bytes
    notes: tuple[str, ...]

    @property
    def kv_bytes(self) -> int:
        """Bytes of all KV pages."""
        return self.num_pages * self.page_bytes

    @property
    def workspace_bytes(self) -> int:
        """Bytes of everything besides weights and KV pages."""
        return sum(size for _, size in self.workspace)

    @property
    def array_bytes(self) -> int:
        """Bytes of what lies on the device between steps, as jax counts them."""
        lying = sum(size for what, size in self.workspace if what in LYING)
        return self.weight_bytes + lying + self.kv_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of everything: on a CPU, of the whole process."""
        return self.weight_bytes + self.workspace_bytes + self.kv_bytes

    @property
    def after_compiling_bytes(self) -> int:
        """As `total_bytes`, of an engine that compiled its programs when it started."""
        return self.total_bytes + (AFTER_COMPILING if self.platform == "cpu" else 0)

    @property
    def free_bytes(self) -> int:
        """Bytes that stay free."""
        return self.available_bytes - self.total_bytes

    @property
    def _together(self) -> str:
        if self.platform != "cpu":
            return ""
        more = AFTER_COMPILING / MIB
        return f"the process, when all pages are written; {more:.0f} more where it compiled"

    def table(self) -> str:
        """Lay the plan out for a reader."""
        pages = f"{self.num_pages} pages of {self.page_size} tokens, {self.page_bytes} bytes each"
        rows = [
            ("available", self.available_bytes, self.platform),
            ("weights", self.weight_bytes, ""),
            *((what, size, "") for what, size in self.workspace),
            ("KV pages", self.kv_bytes, pages),
            ("together", self.total_bytes, self._together),
            ("free", self.free_bytes, ""),
        ]
        lines = [f"{what:<12}{size / MIB:>12.1f} MiB  {note}".rstrip() for what, size, note in rows]
        lines.append(f"{'context':<12}{self.max_model_len:>12} tokens (max_model_len)")
        return "\n".join([*lines, *self.notes])


def plan_memory(
    sizes: ModelMemory,
    *,
    model: ModelConfig,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    platform: str,
    free_device_bytes: int | None = None,
) -> MemoryPlan:
    """Divide the memory, or say with numbers why it cannot be done.

    `free_device_bytes` is what a device with memory of its own has left; None means the host's.

    Raises:
      FailedPrecondition: RTPJ-2104, the weights do not fit.
      InvalidArgument: RTPJ-2103, 2105 or 2106: max_model_len, kv_memory or num_pages do not.
    """
    limit = available = free_device_bytes
    if limit is None or available is None:
        host = host_memory()
        limit, available = host.limit, host.available
    wanted = _wanted_length(sizes, model)
    page_size = cache.page_size or PAGE_SIZES[platform]
    page_bytes = page_size * sizes.kv_bytes_per_token
    held = functools.partial(workspace, sizes, model=model, scheduler=scheduler, platform=platform)
    below = _below(cache, platform)
    beside = (*held(length=wanted), *below)
    room = available - sizes.weight_bytes - sum(size for _, size in beside)
    if room < 2 * page_bytes:
        raise _weights_too_large(sizes, beside, page_bytes, available)
    per_sequence = -(-wanted // page_size)
    useful = 1 + per_sequence * scheduler.max_num_seqs * (1 + cache.enable_prefix_caching)
    num_pages, reason = _num_pages(cache, platform, page_bytes, room, limit, useful)
    tokens = (num_pages - 1) * page_size  # one page is the null page
    length, notes = wanted, (f"KV pages: {reason}",)
    if tokens < wanted:
        numbers = (
            f"{wanted} needs {per_sequence} pages, {num_pages - 1} fit"
            f" ({num_pages - 1} x {page_bytes} bytes: {reason})"
        )
        if model.max_model_len is not None:
            fixes = _fixes(sizes, cache, page_bytes, room, num_pages, per_sequence)
            raise _pages_insufficient(numbers, tokens, fixes)
        length, notes = tokens, (*notes, f"max_model_len: {numbers}; lowered to {tokens}")
    return MemoryPlan(
        platform=platform,
        page_size=page_size,
        num_pages=num_pages,
        page_bytes=page_bytes,
        max_model_len=length,
        available_bytes=available,
        weight_bytes=sizes.weight_bytes,
        workspace=(*held(length=length), *below),
        notes=notes,
    )


def _below(cache: CacheConfig, platform: str) -> tuple[tuple[str, int], ...]:
    """List what tiers below the pages take of the memory that pages are in.

    Pages on their way up and down are staged beside them; host memory counts where it is the same.
    """
    if not cache.has_tiers:
        return ()
    staging = ("staging", 2 * cache.kv_staging_bytes)
    return (staging, ("host KV", cache.kv_host_bytes)) if platform == "cpu" else (staging,)


def _wanted_length(sizes: ModelMemory, model: ModelConfig) -> int:
    if model.max_model_len is None:
        return sizes.max_positions
    if model.max_model_len > sizes.max_positions:
        raise InvalidArgument(
            f"RTPJ-2106 MODEL_LEN_TOO_LARGE: max_model_len={model.max_model_len}, and the model"
            f" knows {sizes.max_positions} positions. Lower max_model_len to"
            f" <= {sizes.max_positions}, or leave it out.",
            field="max_model_len",
        )
    return model.max_model_len


def _num_pages(
    cache: CacheConfig, platform: str, page_bytes: int, room: int, limit: int, useful: int
) -> tuple[int, str]:
    """Decide how many pages there are, and say why."""
    if cache.num_pages is not None:
        _check_room("num_pages", cache.num_pages, cache.num_pages * page_bytes, page_bytes, room)
        return cache.num_pages, f"num_pages={cache.num_pages}"
    if cache.kv_memory is not None:
        _check_room("kv_memory", cache.kv_memory, cache.kv_memory, page_bytes, room)
        return cache.kv_memory // page_bytes, f"kv_memory={cache.kv_memory}"
    if platform == "cpu":
        share, reason = min(4 * GIB, limit // 4), "the smaller of 4 GiB and a quarter of the limit"
        share, reason = min((share, reason), (room, "all that is left"))
    else:
        share, reason = room * 9 // 10, "0.9 of what is left"
    fits = max(share // page_bytes, 2)
    if fits > useful:
        return useful, "as many as max_num_seqs sequences and finished prefixes can use"
    return fits, reason


def _check_room(name: str, value: int, asked: int, page_bytes: int, room: int) -> None:
    fits = room // page_bytes
    if 2 * page_bytes <= asked <= room:
        return
    unit = page_bytes if name == "kv_memory" else 1
    raise InvalidArgument(
        f"RTPJ-2105 KV_MEMORY_INVALID: {name}={value} is {asked} bytes of KV pages,"
        f" {room} bytes are free for them, and a page has {page_bytes}. Choose {name} between"
        f" {2 * unit} and {fits * unit}.",
        field=name,
    )


def _fixes(
    sizes: ModelMemory, cache: CacheConfig, page_bytes: int, room: int, num_pages: int, needed: int
) -> list[str]:
    """List what besides a shorter context makes a sequence of `needed` pages fit."""
    fixes = []
    if (needed + 1) * page_bytes <= room:
        name = "kv_memory" if cache.num_pages is None else "num_pages"
        value = (needed + 1) * (page_bytes if cache.num_pages is None else 1)
        fixes.append(f"raise {name} to >= {value}")
    smaller = SMALLER_KV.get(sizes.kv.describe())
    if smaller is not None and cache.num_pages is None:
        kv = KVLayers((KV_SCHEMES[smaller],) * sizes.num_layers)
        per_token = dataclasses.replace(sizes, kv=kv).kv_bytes_per_token
        fit = num_pages * sizes.kv_bytes_per_token // per_token - 1
        fixes.append(f"set kv_dtype={smaller} ({fit} fit)")
    return fixes


def _pages_insufficient(numbers: str, held: int, fixes: list[str]) -> InvalidArgument:
    advice = ", or ".join([f"Lower max_model_len to <= {held}", *fixes])
    return InvalidArgument(
        f"RTPJ-2103 KV_PAGES_INSUFFICIENT: max_model_len={numbers}. {advice}.",
        field="max_model_len",
    )


def _weights_too_large(
    sizes: ModelMemory, beside: tuple[tuple[str, int], ...], page_bytes: int, available: int
) -> FailedPrecondition:
    parts = ", ".join(f"{what} {size}" for what, size in beside)
    needed = sizes.weight_bytes + sum(size for _, size in beside) + 2 * page_bytes
    fix = "dtype=bfloat16, " if sizes.itemsize == 4 else ""
    return FailedPrecondition(
        f"RTPJ-2104 MODEL_TOO_LARGE: the model needs {needed} bytes (weights {sizes.weight_bytes},"
        f" {parts}, two KV pages {2 * page_bytes}), {available} are available. Use a machine with"
        f" {needed - available} bytes more, or {fix}a smaller model, or lower max_num_seqs or"
        " max_num_batched_tokens.",
    )
