"""The status of a router for browsers and for Prometheus, beside its metrics.

/             one live page, which asks for `/status.txt` every second
/status.txt   what `rtp-jax status` shows
/status.json  the message of `router.proto` as JSON
/metrics      gauges of each worker, with its address as label
"""

import html
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rtp_jax.serving.metrics_endpoint import PLAIN, Page
from rtp_jax.serving.router_status import WORD_OF, StatusSource, as_json, as_text
from rtp_jax.wire import router_pb2 as pb

HTML, JSON = "text/html; charset=utf-8", "application/json"
PREFIX = "rtp_jax:router_"
PAGE = """<!doctype html><meta charset="utf-8"><title>rtp_jax router</title>
<style>body{{font:14px system-ui,sans-serif;margin:2em}}pre{{font:13px monospace}}</style>
<h1>rtp_jax router</h1><pre id="status">{text}</pre>
<script>
async function look() {{
  try {{
    const answer = await fetch("status.txt", {{cache: "no-store"}});
    document.getElementById("status").textContent = await answer.text();
    document.title = "rtp_jax router";
  }} catch (error) {{ document.title = "rtp_jax router (does not answer)"; }}
}}
setInterval(look, 1000);
</script>
"""
# fmt: off
COUNTERS = (
    ("num_requests", "requests", "Requests so far"),
    ("num_resumed", "resumed", "Times that a request went on at another worker"),
    ("num_failed", "failed", "Requests that ended with an error"),
)
GAUGES = (
    ("num_open", "open", "Requests that have not ended"),
    ("num_waiting", "waiting", "Requests that wait for a worker"),
)
OF_WORKER = (
    ("num_open", "worker_open", "Requests of this router at a worker"),
    ("num_known_pages", "worker_known_pages", "Pages that this router knows of at a worker"),
    ("load_age_s", "worker_report_age_seconds", "Seconds since a worker said something"),
)
OF_LOAD = (
    ("num_running", "worker_running", "Sequences that run at a worker"),
    ("num_waiting", "worker_waiting", "Sequences that wait at a worker"),
    ("num_free_pages", "worker_free_pages", "Pages of a worker that hold nothing"),
    ("num_cached_pages", "worker_cached_pages", "Pages that a worker's prefix cache remembers"),
)
COUNTERS_OF_WORKER = (
    ("num_sent", "worker_sent", "Requests sent to a worker"),
    ("num_lost", "worker_lost", "Requests that went on elsewhere"),
    ("prompt_tokens", "worker_prompt_tokens", "Prompt tokens of requests that a worker answered"),
    ("cached_tokens", "worker_cached_tokens", "Of these, found in its prefix cache"),
)
# fmt: on


def pages_of(source: StatusSource) -> Mapping[str, Page]:
    """Return the pages that the metrics endpoint serves besides its own."""
    return {
        "/": lambda: (PAGE.format(text=html.escape(as_text(source.from_thread()))), HTML, True),
        "/status.txt": lambda: (as_text(source.from_thread()), PLAIN, True),
        "/status.json": lambda: (as_json(source.from_thread()), JSON, True),
    }


def metrics_of_router(source: StatusSource, registry: CollectorRegistry) -> None:
    """Add a router's series to a registry."""
    registry.register(_Series(source))


class _Series:
    """Reads status when somebody scrapes."""

    def __init__(self, source: StatusSource):
        self._source = source

    def describe(self) -> list[Metric]:
        """Nothing to say before there is a router."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all series."""
        status = self._source.from_thread()
        for field, name, words in COUNTERS:
            yield CounterMetricFamily(PREFIX + name, words, value=getattr(status, field))
        for field, name, words in GAUGES:
            yield GaugeMetricFamily(PREFIX + name, words, value=getattr(status, field))
        for field, name, words in OF_WORKER:
            yield _of_workers(status, name, words, lambda each, at=field: getattr(each, at))
        for field, name, words in OF_LOAD:
            yield _of_workers(status, name, words, lambda each, at=field: getattr(each.load, at))
        for field, name, words in COUNTERS_OF_WORKER:
            family = CounterMetricFamily(PREFIX + name, words, labels=["worker"])
            for worker in status.workers:
                family.add_metric([worker.address], getattr(worker, field))
            yield family
        states = GaugeMetricFamily(
            PREFIX + "worker_state", "1 for the state of a worker", labels=["worker", "state"]
        )
        for worker in status.workers:
            for number, word in WORD_OF.items():
                states.add_metric([worker.address, word], worker.state == number)
        yield states


def _of_workers(status: pb.GetStatusResponse, name: str, words: str, read) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, words, labels=["worker"])
    for worker in status.workers:
        family.add_metric([worker.address], read(worker))
    return family
