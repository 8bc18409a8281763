"""Builds what is below the device: the tiers that the settings name, and what moves pages there.

Read next: `cache/hierarchy.py`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rtp_jax.cache.hierarchy import Hierarchy, HierarchyOptions
from rtp_jax.cache.page_events import PageEvents
from rtp_jax.cache.page_events import Tier as Place
from rtp_jax.cache.tiers.disk import DiskTier, make_private
from rtp_jax.cache.tiers.host import HostTier
from rtp_jax.cache.tiers.redis_store import RedisStore
from rtp_jax.cache.tiers.remote import RemoteTier
from rtp_jax.cache.tiers.tier import Store, Tier
from rtp_jax.config import CacheConfig
from rtp_jax.engine.loop import StepTimes
from rtp_jax.errors import InvalidArgument
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.page_record import KvLayout
from rtp_jax.quant.schemes import Scheme
from rtp_jax.runner.runner import Runner

moving = late("rtp_jax.runner.page_moves")
LEAST_PREFILL = 0.5  # of a step's tokens, for its time to say what prefilling costs


@dataclass(frozen=True, slots=True)
class Below:
    """What an engine has below its device pages."""

    layout: KvLayout
    hierarchy: Hierarchy | None  # None: nothing
    events: PageEvents  # of the device, too

    def prefill_s(self, num_tokens: float) -> float | None:
        """Predict the seconds that computing some tokens takes; None: nothing was measured."""
        return None if self.hierarchy is None else self.hierarchy.prefill_cost.estimate(num_tokens)

    def step(self, times: StepTimes, metrics: Metrics) -> None:
        """Learn from a committed step what prefilling costs; on the engine's thread."""
        if self.hierarchy is None:
            return
        metrics.kv_staging_bytes = self.hierarchy.bytes_on_their_way
        rows = times.plan.rows
        prefill = sum(row.count for row in rows if row.start < row.sequence.num_prompt)
        if prefill > LEAST_PREFILL * times.plan.num_tokens:
            self.hierarchy.prefill_cost.observe(prefill, times.device_s)

    def figures(self) -> dict[str, dict[str, int]]:
        """Say what each tier did and holds, in the names of the metrics; from any thread."""
        hierarchy = self.hierarchy
        if hierarchy is None:
            return {}
        counted = {
            name: dict.fromkeys(("records", "bytes"), 0) | dataclasses.asdict(counters)
            for name, counters in hierarchy.counters.tiers.items()
        }
        for name, (records, num_bytes) in hierarchy.usage().items():
            counted[name] |= {"records": records, "bytes": num_bytes}
        return counted

    def close(self) -> None:
        """End the threads and give the tiers up; disk and remote keep their pages."""
        if self.hierarchy is not None:
            self.hierarchy.close()


def check_tiers(cache: CacheConfig) -> None:
    """Refuse settings that contradict each other, before anything large is loaded.

    Raises:
      InvalidArgument: RTPJ-1104, tiers without a prefix cache; 1105, the URL of the remote tier.
      FailedPrecondition: RTPJ-4109 or 4110, the folder of the disk tier cannot be used, or the
        remote tier needs a library that is not installed.
    """
    if cache.has_tiers and not cache.enable_prefix_caching:
        raise InvalidArgument(
            "RTPJ-1104 TIERS_NEED_PREFIX_CACHE: enable_prefix_caching=False, and kv_host_bytes,"
            " kv_disk_path or kv_remote_url is set, whose pages are found through the prefix"
            " cache. Leave these out, or set enable_prefix_caching=True.",
            field="enable_prefix_caching",
        )
    if cache.kv_disk_path is not None:
        make_private(Path(cache.kv_disk_path))
    if cache.kv_remote_url is not None:
        RedisStore(cache.kv_remote_url).close()


def epoch_of_pages(fingerprint: str, dtype: str, schemes: Iterable[Scheme]) -> str:
    """Name what computes the numbers in pages: the checkpoint, the dtype, how it is quantized.

    Pages outlive this process and reach other workers, whose settings may differ.
    """
    return "-".join((fingerprint, dtype, *(scheme.name for scheme in schemes)))


def tiers_of(
    cache: CacheConfig,
    runner: Runner,
    *,
    model_epoch: str,
    kv_scheme: str,
    on_arrival: Callable[[], None],
    sources: Sequence[Tier] = (),
    source_bytes: int = 0,
) -> Below:
    """Build the tiers; `on_arrival` is called on other threads when pages are here.

    `sources` are only read, and asked last; `source_bytes` may be on their way from them.
    """
    shapes, events = runner.shapes, PageEvents()
    layout = moving.layout_of(
        shapes.kv, page_size=shapes.page_size, model_epoch=model_epoch, kv_scheme=kv_scheme
    )
    if runner.mover is None:
        return Below(layout, None, events)
    options = HierarchyOptions(
        page_size=shapes.page_size,
        page_bytes=runner.mover.page_bytes,
        largest_copy=runner.mover.largest,
        staging_bytes=max(cache.kv_staging_bytes, source_bytes),
        write_hits=cache.kv_write_hits,
        load=cache.kv_load,
        flush_s=cache.kv_flush_s,
    )
    stores: list[Store] = []
    if cache.kv_host_bytes > 0:
        stores.append(HostTier(cache.kv_host_bytes, events.of(Place.HOST)))
    if cache.kv_disk_path is not None:
        told = events.of(Place.DISK)
        stores.append(DiskTier(cache.kv_disk_path, cache.kv_disk_bytes, layout.fingerprint, told))
    if cache.kv_remote_url is not None:
        values = RedisStore(cache.kv_remote_url)
        budget = cache.kv_remote_bytes
        stores.append(RemoteTier(values, layout.fingerprint, options.page_bytes, budget))
    hierarchy = Hierarchy(
        stores, options, stage=runner.mover.stage, on_arrival=on_arrival, sources=sources
    )
    return Below(layout, hierarchy, events)
