"""What an engine and its doors count, and how Prometheus reads it.

The engine's thread writes plain numbers; names, labels and text are made when somebody scrapes, so
a step pays a few microseconds.  Each series has one writing thread.  To count:

    metrics = Metrics(model_name="rtp-tiny")          # vllm_names=False: only `rtp_jax:` names
    metrics.on_step(StepStats(num_prefill_tokens=100, num_decode_tokens=12, num_padded_tokens=128,
                              schedule_s=2e-4, prepare_s=1e-4, dispatch_s=1e-4, wait_s=4e-3,
                              commit_s=2e-4))
    metrics.on_request_finished(RequestStats(finished_reason="stop", num_prompt_tokens=90, ...))
    metrics.set_loads(num_running=12, num_waiting=0, num_pages=512, num_free_pages=100,
                      num_cached_pages=40)
    metrics.on_compile(seconds=1.5)                   # after `metrics.ready = True` an alarm
    metrics.num_preemptions += 1                      # every counter of COUNTERS is an attribute
    generate_latest(metrics.registry)                 # what `serving/metrics_endpoint.py` serves

Read next: `serving/metrics_endpoint.py`.
"""

import bisect
import collections
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

OWN, VLLM = "rtp_jax:", "vllm:"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0)
SECONDS += (7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
STEP_SECONDS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 5.0)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536, 262144)
PHASES = ("schedule", "prepare", "dispatch", "wait", "commit")
REASONS = ("stop", "length", "abort", "error")

# fmt: off
# name and attribute          also under vllm:   help
COUNTERS = (
    ("prompt_tokens",             True,  "Prompt tokens computed"),
    ("generation_tokens",         True,  "Tokens generated"),
    ("prefix_cache_queries",      True,  "Prompt tokens looked up in the prefix cache"),
    ("prefix_cache_hits",         True,  "Prompt tokens found in the prefix cache"),
    ("num_preemptions",           True,  "Sequences whose pages were taken while they ran"),
    ("num_steps",                 False, "Steps launched"),
    ("step_tokens",               False, "Real tokens in all steps"),
    ("step_padding_tokens",       False, "Padding tokens in all steps"),
    ("compiles",                  False, "Programs compiled"),
    ("compile_after_ready",       False, "Programs compiled after the engine was ready: an alarm"),
    ("compile_seconds",           False, "Seconds spent compiling"),
    ("program_cache_hits",        False, "Programs loaded from the compile cache"),
    ("requests_refused",          False, "Requests refused at admission"),
    ("request_faults",            False, "Requests ended by a fault of ours"),
    ("peer_pulls",                False, "Prompts for whose pages other workers were asked"),
    ("peer_pulls_short",          False, "Of these, those for which not all pages came"),
    ("peer_pages",                False, "Pages that came from other workers"),
    ("peer_bytes",                False, "Bytes of these pages"),
    ("peer_pages_corrupt",        False, "Pages from other workers that were damaged"),
    ("offers_opened",             False, "Prompts that were prefilled for other workers"),
    ("offers_expired",            False, "Of these, those whose lease or deadline passed"),
    ("offered_pages",             False, "Pages that were published for other workers"),
    ("direct_pages",              False, "Pages that came over the direct transport"),
    ("direct_failed",             False, "Direct pulls that did not come, or not in time"),
    ("direct_given",              False, "Arrays of pages given to the direct transport"),
    ("direct_unfetched",          False, "Of these, those that nobody fetched in time"),
    ("direct_refused",            False, "Arrays for which the direct transport had no room"),
)
GAUGES = (
    ("num_requests_running",      True,  "Sequences in the running batch"),
    ("num_requests_waiting",      True,  "Requests that wait"),
    ("kv_cache_usage_perc",       True,  "KV pages in use by live sequences; 1 means all"),
    ("num_pages",                 False, "KV pages, the null page not counted"),
    ("num_free_pages",            False, "KV pages that nobody uses"),
    ("num_cached_pages",          False, "KV pages that only the prefix cache remembers"),
    ("num_parked",                False, "Sequences that wait for pages of a tier below"),
    ("kv_staging_bytes",          False, "Bytes of pages on their way between tiers"),
    ("direct_waiting_bytes",      False, "Bytes that wait to be fetched directly"),
    ("direct_stuck",              False, "Direct pulls that cannot be ended"),
    ("direct_stuck_bytes",        False, "Bytes that these may hold"),
    ("ready",                     False, "1 once the engine has warmed up"),
)
HISTOGRAMS = (
    ("time_to_first_token_seconds",   True,  SECONDS, "Request received until first token"),
    ("inter_token_latency_seconds",   True,  SECONDS, "Gap between two tokens of a sequence"),
    ("e2e_request_latency_seconds",   True,  SECONDS, "Request received until its end"),
    ("request_queue_time_seconds",    True,  SECONDS, "Request received until its first step"),
    ("request_prefill_time_seconds",  True,  SECONDS, "First step until first token"),
    ("request_decode_time_seconds",   True,  SECONDS, "First token until the end"),
    ("request_inference_time_seconds", True, SECONDS, "First step until the end"),
    ("request_prompt_tokens",         True,  TOKENS,  "Prompt tokens of a request"),
    ("request_generation_tokens",     True,  TOKENS,  "Output tokens of a request"),
    ("request_params_max_tokens",     True,  TOKENS,  "max_tokens of a request"),
    ("request_params_n",              True,  (1, 2, 5, 10, 20, 50, 128), "n of a request"),
    ("iteration_tokens_total",        True,  TOKENS,  "Tokens of a step"),
)
# fmt: on
TIER_FIGURES = {  # of a tier of KV below the device
    "records": "Pages that it holds",
    "bytes": "Bytes of the pages that it holds",
    "pages_read": "Pages read from it",
    "pages_written": "Pages written to it",
    "pages_dropped": "Pages not written because too much was on its way",
    "pages_corrupt": "Pages that were damaged, and computed instead",
    "reads_short": "Reads that ended before what was expected",
    "declined": "Runs of pages that were computed because that was cheaper",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStats:
    """One step, as the engine's thread saw it."""

    num_prefill_tokens: int
    num_decode_tokens: int
    num_padded_tokens: int  # the bucket: real tokens and padding
    schedule_s: float = 0.0
    prepare_s: float = 0.0
    dispatch_s: float = 0.0
    wait_s: float = 0.0  # for the device
    commit_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStats:
    """One request at its end; times are seconds since it arrived."""

    finished_reason: str  # stop, length, abort, error
    num_prompt_tokens: int
    num_output_tokens: int  # of all completions
    num_cached_tokens: int = 0
    queue_s: float | None = None  # None: it never ran
    first_token_s: float | None = None
    total_s: float = 0.0
    max_tokens: int | None = None
    n: int = 1


@dataclass(slots=True)
class Histogram:
    """Counts of values per bucket; a value goes to the first bound that is not below it."""

    bounds: Sequence[float]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self):
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, or `count` equal ones."""
        self.counts[bisect.bisect_left(self.bounds, value)] += count
        self.total += value * count

    def cumulative(self) -> list[tuple[str, float]]:
        """List upper bound and number of values up to it, as Prometheus wants them."""
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        sums, so_far = [], 0
        for name, count in zip(names, self.counts, strict=True):
            so_far += count
            sums.append((name, float(so_far)))
        return sums


class Metrics:
    """Everything that is counted for one engine, and its own Prometheus registry."""

    def __init__(self, *, model_name: str = "", vllm_names: bool = True):
        self.model_name = model_name
        self.vllm_names = vllm_names
        self.ready = False  # set by the engine when it can serve; compiles are an alarm from then
        self.prompt_tokens = self.generation_tokens = 0
        self.prefix_cache_queries = self.prefix_cache_hits = self.num_preemptions = 0
        self.num_steps = self.step_tokens = self.step_padding_tokens = 0
        self.compiles = self.compile_after_ready = self.program_cache_hits = 0
        self.compile_seconds = 0.0
        self.requests_refused = self.request_faults = 0
        self.peer_pulls = self.peer_pulls_short = self.peer_pages = self.peer_bytes = 0
        self.peer_pages_corrupt = 0
        self.offers_opened = self.offers_expired = self.offered_pages = 0
        self.direct_pages = self.direct_failed = self.direct_given = self.direct_unfetched = 0
        self.direct_refused = 0
        self.direct_waiting_bytes = self.direct_stuck = self.direct_stuck_bytes = 0
        self.num_requests_running = self.num_requests_waiting = 0
        self.num_pages = self.num_free_pages = self.num_cached_pages = 0
        self.kv_cache_usage_perc = 0.0
        self.num_parked = self.kv_staging_bytes = 0
        self.cache_config: Mapping[str, str] = {}  # labels of `cache_config_info`
        self.request_success: dict[str, int] = dict.fromkeys(REASONS, 0)
        self.rpcs: collections.Counter[tuple[str, str]] = collections.Counter()
        self.histograms = {name: Histogram(bounds) for name, _, bounds, _ in HISTOGRAMS}
        self.step_time = {phase: Histogram(STEP_SECONDS) for phase in PHASES}
        self._committed_s = time.monotonic()
        self._gaps = self.histograms["inter_token_latency_seconds"]
        self._sizes = self.histograms["iteration_tokens_total"]
        # By tier of KV below the device, read when somebody scrapes; None: there is none.
        self.kv_tiers: Callable[[], Mapping[str, Mapping[str, float]]] | None = None
        # Called when somebody scrapes, to bring numbers here that change without a step.
        self.refresh: Callable[[], None] | None = None
        self.tier_hits: Mapping[str, int] = {}  # prompt tokens found, by tier
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Collector(self))

    def on_step(self, step: StepStats, *, now_s: float | None = None) -> None:
        """Count one step, after its commit, which is when its tokens are there.

        A sequence that decodes got its token before in the step before, so the time between two
        commits is the latency between those tokens.
        """
        now_s = time.monotonic() if now_s is None else now_s
        if step.num_decode_tokens:
            self._gaps.observe(now_s - self._committed_s, step.num_decode_tokens)
        self._committed_s = now_s
        num_tokens = step.num_prefill_tokens + step.num_decode_tokens
        self.num_steps += 1
        self.prompt_tokens += step.num_prefill_tokens
        self.step_tokens += num_tokens
        self.step_padding_tokens += step.num_padded_tokens - num_tokens
        self._sizes.observe(num_tokens)
        times = self.step_time
        times["schedule"].observe(step.schedule_s)
        times["prepare"].observe(step.prepare_s)
        times["dispatch"].observe(step.dispatch_s)
        times["wait"].observe(step.wait_s)
        times["commit"].observe(step.commit_s)

    def on_request_finished(self, request: RequestStats) -> None:
        """Count a request at its end, however it ended."""
        self.request_success[request.finished_reason] += 1
        self.generation_tokens += request.num_output_tokens
        seen = self.histograms
        seen["e2e_request_latency_seconds"].observe(request.total_s)
        seen["request_prompt_tokens"].observe(request.num_prompt_tokens)
        seen["request_generation_tokens"].observe(request.num_output_tokens)
        seen["request_params_n"].observe(request.n)
        if request.max_tokens is not None:
            seen["request_params_max_tokens"].observe(request.max_tokens)
        if request.queue_s is None:
            return
        seen["request_queue_time_seconds"].observe(request.queue_s)
        seen["request_inference_time_seconds"].observe(request.total_s - request.queue_s)
        if request.first_token_s is not None:
            seen["time_to_first_token_seconds"].observe(request.first_token_s)
            seen["request_prefill_time_seconds"].observe(request.first_token_s - request.queue_s)
            seen["request_decode_time_seconds"].observe(request.total_s - request.first_token_s)

    def on_compile(self, *, seconds: float) -> None:
        """Count a program that was compiled, and raise the alarm if the engine was ready."""
        self.compiles += 1
        self.compile_seconds += seconds
        self.compile_after_ready += self.ready

    def on_rpc(self, method: str, code: str) -> None:
        """Count an answer of a door by its status code, which HTTP shares with gRPC."""
        self.rpcs[method, code] += 1

    def set_loads(
        self,
        *,
        num_running: int,
        num_waiting: int,
        num_pages: int,
        num_free_pages: int,
        num_cached_pages: int = 0,
    ) -> None:
        """Say how full the engine is; the null page is not counted, and pages in use are
        neither free nor merely cached."""
        self.num_requests_running, self.num_requests_waiting = num_running, num_waiting
        self.num_pages, self.num_free_pages = num_pages, num_free_pages
        self.num_cached_pages = num_cached_pages
        num_used = num_pages - num_free_pages - num_cached_pages
        self.kv_cache_usage_perc = num_used / max(num_pages, 1)


class _Collector:
    """Renders a `Metrics` when Prometheus asks."""

    def __init__(self, metrics: Metrics):
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield every series, under our names and, where dashboards know them, vLLM's."""
        if self.metrics.refresh is not None:
            self.metrics.refresh()
        for prefix in (OWN, VLLM) if self.metrics.vllm_names else (OWN,):
            yield from self._numbers(prefix)
            yield from self._histograms(prefix)
            yield from self._labelled(prefix)

    def _numbers(self, prefix: str) -> Iterator[Metric]:
        labels, values = ["model_name"], [self.metrics.model_name]
        for name, shared, help_text in COUNTERS:
            if prefix == OWN or shared:
                counter = CounterMetricFamily(prefix + name, help_text, labels=labels)
                counter.add_metric(values, float(getattr(self.metrics, name)))
                yield counter
        for name, shared, help_text in GAUGES:
            if prefix == OWN or shared:
                gauge = GaugeMetricFamily(prefix + name, help_text, labels=labels)
                gauge.add_metric(values, float(getattr(self.metrics, name)))
                yield gauge

    def _histograms(self, prefix: str) -> Iterator[Metric]:
        name_of_model = [self.metrics.model_name]
        for name, shared, _, help_text in HISTOGRAMS:
            if prefix == OWN or shared:
                seen = self.metrics.histograms[name]
                family = HistogramMetricFamily(prefix + name, help_text, labels=["model_name"])
                family.add_metric(name_of_model, seen.cumulative(), seen.total)
                yield family
        if prefix == OWN:
            labels = ["model_name", "phase"]
            family = HistogramMetricFamily(
                OWN + "step_time_seconds", "Time of a step by phase", labels=labels
            )
            for phase, seen in self.metrics.step_time.items():
                family.add_metric([*name_of_model, phase], seen.cumulative(), seen.total)
            yield family

    def _labelled(self, prefix: str) -> Iterator[Metric]:
        model_name = self.metrics.model_name
        labels = ["model_name", "finished_reason"]
        ended = CounterMetricFamily(prefix + "request_success", "Requests ended", labels=labels)
        for reason, count in list(self.metrics.request_success.items()):
            ended.add_metric([model_name, reason], float(count))
        yield ended
        names = ["model_name", *self.metrics.cache_config]
        config = GaugeMetricFamily(prefix + "cache_config_info", "KV pages", labels=names)
        config.add_metric([model_name, *self.metrics.cache_config.values()], 1.0)
        yield config
        if prefix == OWN:
            yield from self._tiers()
            labels = ["model_name", "method", "code"]
            rpcs = CounterMetricFamily(OWN + "rpcs", "Answers of the doors", labels=labels)
            for (method, code), count in list(self.metrics.rpcs.items()):
                rpcs.add_metric([model_name, method, code], float(count))
            yield rpcs

    def _tiers(self) -> Iterator[Metric]:
        """Count what each tier of KV gave and holds; names end in what they are."""
        labels, name = ["model_name", "tier"], self.metrics.model_name
        hits = CounterMetricFamily(
            OWN + "kv_tier_hit_tokens", "Prompt tokens found, by tier", labels=labels
        )
        for tier, count in self.metrics.tier_hits.items():
            hits.add_metric([name, tier], float(count))
        yield hits
        counts = {} if self.metrics.kv_tiers is None else self.metrics.kv_tiers()
        for what in TIER_FIGURES:
            gauge = what in ("records", "bytes")
            family = GaugeMetricFamily if gauge else CounterMetricFamily
            metric = family(OWN + f"kv_tier_{what}", TIER_FIGURES[what], labels=labels)
            for tier, figures in counts.items():
                metric.add_metric([name, tier], float(figures[what]))
            yield metric
