"""Metrics: what is counted is what is served, under both names, and counting is cheap."""

import time

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rtp_jax.metrics import COUNTERS, GAUGES, HISTOGRAMS, PHASES, Metrics, RequestStats, StepStats

STEP = StepStats(
    num_prefill_tokens=100,
    num_decode_tokens=12,
    num_padded_tokens=128,
    schedule_s=2e-4,
    prepare_s=1e-4,
    dispatch_s=1e-4,
    wait_s=4e-3,
    commit_s=2e-4,
)
PREFILL = StepStats(num_prefill_tokens=7, num_decode_tokens=0, num_padded_tokens=8)
REQUEST = RequestStats(
    finished_reason="stop",
    num_prompt_tokens=90,
    num_output_tokens=16,
    num_cached_tokens=64,
    queue_s=0.1,
    first_token_s=0.3,
    total_s=1.3,
    max_tokens=32,
)


def samples(metrics: Metrics) -> dict[tuple, float]:
    """Scrape, and read what came: (name, labels but model_name) -> value."""
    found = {}
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            assert sample.labels["model_name"] == "m"
            found[sample.name, *sorted(labels.items())] = sample.value
    return found


@pytest.mark.smoke
@pytest.mark.capability("metrics")
def test_a_step_and_a_request_are_counted():
    metrics = Metrics(model_name="m")
    metrics.on_step(PREFILL, now_s=1.0)
    metrics.on_step(STEP, now_s=1.005)
    metrics.on_request_finished(REQUEST)
    metrics.prefix_cache_queries, metrics.prefix_cache_hits = 90, 64
    metrics.set_loads(
        num_running=12, num_waiting=3, num_pages=100, num_free_pages=30, num_cached_pages=20
    )
    metrics.on_rpc("Generate", "OK")
    seen = samples(metrics)
    for prefix in ("rtp_jax:", "vllm:"):
        assert seen[f"{prefix}prompt_tokens_total",] == 107
        assert seen[f"{prefix}generation_tokens_total",] == 16
        assert seen[f"{prefix}kv_cache_usage_perc",] == 0.5
        assert seen[f"{prefix}num_requests_running",] == 12
        assert seen[f"{prefix}prefix_cache_hits_total",] == 64
        assert seen[f"{prefix}request_success_total", ("finished_reason", "stop")] == 1
        assert seen[f"{prefix}inter_token_latency_seconds_count",] == 12
        assert seen[f"{prefix}inter_token_latency_seconds_sum",] == pytest.approx(0.06)
        assert seen[f"{prefix}time_to_first_token_seconds_bucket", ("le", "0.25")] == 0
        assert seen[f"{prefix}time_to_first_token_seconds_bucket", ("le", "0.5")] == 1
        assert seen[f"{prefix}request_prefill_time_seconds_sum",] == pytest.approx(0.2)
        assert seen[f"{prefix}request_decode_time_seconds_sum",] == pytest.approx(1.0)
        assert seen[f"{prefix}iteration_tokens_total_sum",] == 119
    assert seen["rtp_jax:step_padding_tokens_total",] == 17
    assert seen["rtp_jax:rpcs_total", ("code", "OK"), ("method", "Generate")] == 1
    for phase in PHASES:
        assert seen["rtp_jax:step_time_seconds_count", ("phase", phase)] == 2


def test_a_request_that_never_ran_has_no_first_token():
    metrics = Metrics(model_name="m")
    metrics.on_request_finished(
        RequestStats(finished_reason="abort", num_prompt_tokens=1, num_output_tokens=0)
    )
    seen = samples(metrics)
    assert seen["vllm:time_to_first_token_seconds_count",] == 0
    assert seen["vllm:request_success_total", ("finished_reason", "abort")] == 1


def test_a_compile_after_ready_is_an_alarm():
    metrics = Metrics(model_name="m")
    metrics.on_compile(seconds=1.5)
    metrics.ready = True
    assert samples(metrics)["rtp_jax:compile_after_ready_total",] == 0
    metrics.on_compile(seconds=0.5)
    seen = samples(metrics)
    assert seen["rtp_jax:compile_after_ready_total",] == 1
    assert seen["rtp_jax:compiles_total",] == 2
    assert seen["rtp_jax:compile_seconds_total",] == 2.0


def test_vllms_names_can_be_left_out():
    names = {name for name, *_ in samples(Metrics(model_name="m", vllm_names=False))}
    assert not [name for name in names if name.startswith("vllm:")]


def test_every_series_is_served_under_its_name():
    names = {name for name, *_ in samples(Metrics(model_name="m"))}
    for name, shared, *_ in COUNTERS:
        assert f"rtp_jax:{name}_total" in names
        assert (f"vllm:{name}_total" in names) == shared
    for name, shared, *_ in GAUGES:
        assert f"rtp_jax:{name}" in names
        assert (f"vllm:{name}" in names) == shared
    for name, shared, *_ in HISTOGRAMS:
        assert f"rtp_jax:{name}_bucket" in names
        assert (f"vllm:{name}_bucket" in names) == shared


def test_counting_a_step_takes_microseconds():
    metrics = Metrics()
    began = time.thread_time()
    for _ in range(1000):
        metrics.on_step(STEP)
        metrics.set_loads(num_running=12, num_waiting=3, num_pages=100, num_free_pages=30)
    assert (time.thread_time() - began) / 1000 < 50e-6


def test_what_changes_without_a_step_is_brought_when_somebody_scrapes():
    metrics = Metrics(model_name="m")
    metrics.refresh = lambda: setattr(metrics, "direct_waiting_bytes", 77)
    assert samples(metrics)["rtp_jax:direct_waiting_bytes",] == 77
