"""The engine with tiers says what it says without: any combination, any size, any trouble."""

import os
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from rtp_jax import Engine, SamplingParams
from rtp_jax.errors import InvalidArgument, Unavailable
from tests.engine.workload import check_idle, small_engine
from tests.redis_server import answering, redis_server

PAGE = 16
SETTINGS = {
    "deterministic": True,  # one program
    "max_num_seqs": 4,
    "max_model_len": 160,
    "kv_load": "always",
}
WORKING_SET = 44  # pages of all prompts of `workload`, with their answers
HOST = {"kv_host_bytes": 32 << 20}
ANSWER = 6  # tokens


def prompts() -> list[list[int]]:
    """Make prompts of which two each share their beginning."""
    rng = np.random.default_rng(5)
    shared = [rng.integers(3, 440, 64).tolist() for _ in range(4)]
    return [shared[i // 2] + rng.integers(3, 440, 40 + 5 * i).tolist() for i in range(8)]


def params(i: int) -> SamplingParams:
    """Make every other request greedy, the rest seeded."""
    temperature = 0.0 if i % 2 else 0.9
    return SamplingParams(max_tokens=ANSWER, ignore_eos=True, seed=i, temperature=temperature)


def engine_of(model: Path, cache: Path, *, times: float, **options) -> Engine:
    """Start an engine whose device holds so many times the working set."""
    pages = 1 + max(int(times * WORKING_SET), 11)
    return small_engine(model, cache, num_pages=pages, **SETTINGS, **options)


def answer_all(engine: Engine, *, together: bool = False) -> list[list[int]]:
    """Ask everything twice; the second time, smaller devices have lost what they computed."""
    asked, settings = prompts() * 2, [params(i % 8) for i in range(16)]
    if together:
        outputs = engine.generate(asked, settings, use_tqdm=False)
    else:
        outputs = []
        for prompt, each in zip(asked, settings, strict=True):
            outputs += engine.generate(prompt, each, use_tqdm=False)
            settle(engine)
    return [output.outputs[0].token_ids for output in outputs]


def settle(engine: Engine) -> None:
    """Wait until nothing moves between tiers."""
    below = engine._parts.below.hierarchy
    until = time.monotonic() + 5
    while time.monotonic() < until:
        if not engine._parts.scheduler.has_moves and (below is None or below.is_idle):
            return
        time.sleep(0.001)
    raise AssertionError("pages are still on their way")


def check_tiers_idle(engine: Engine) -> None:
    """Hold the invariants of an engine with tiers that has nothing to do."""
    check_idle(engine)
    settle(engine)
    assert engine._parts.scheduler.num_parked == 0
    assert engine._parts.below.hierarchy.bytes_on_their_way == 0


@pytest.fixture(scope="module")
def expected(tiny_model, program_cache):
    """What an engine says that has room for everything, and no tiers."""
    with small_engine(tiny_model, program_cache, num_pages=400, **SETTINGS) as engine:
        return answer_all(engine)


@pytest.fixture(scope="module")
def server():
    pytest.importorskip("redis")
    with redis_server() as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    yield
    until = time.monotonic() + 5
    while time.monotonic() < until:
        after = threading.active_count(), len(os.listdir("/proc/self/fd"))
        if after[0] <= before[0] and after[1] <= before[1] + 2:  # jax may keep a file or two
            return
        time.sleep(0.01)
    raise AssertionError(f"{before} threads and files before, {after} after")


def options_of(names: str, server, folder: Path) -> dict:
    """Turn names of tiers into settings, with stores that are empty."""
    server.ask(b"FLUSHALL")
    options = {"host": HOST, "disk": {"kv_disk_path": str(folder / "kv")}}
    options["remote"] = {"kv_remote_url": server.url}
    return {k: v for name in names.split("+") for k, v in options[name].items()}


@pytest.mark.parametrize("times", [0.5, pytest.param(2, marks=pytest.mark.full),
                                   pytest.param(8, marks=pytest.mark.full)])  # fmt: skip
@pytest.mark.parametrize(
    "names",
    [
        "host",
        "disk",
        "remote",
        pytest.param("host+disk", marks=pytest.mark.full),
        pytest.param("host+remote", marks=pytest.mark.full),
        pytest.param("disk+remote", marks=pytest.mark.full),
        "host+disk+remote",
    ],
)
@pytest.mark.capability("KV tiers")
def test_tokens_are_those_without_tiers(
    tiny_model, program_cache, expected, server, tmp_path, names, times
):
    options = options_of(names, server, tmp_path)
    with engine_of(tiny_model, program_cache, times=times, **options) as engine:
        assert answer_all(engine) == expected
        hits = engine._parts.scheduler.counters.tier_hit_tokens
        assert (hits[names.split("+")[0]] > 0) is (times < 1)
        assert answer_all(engine, together=True) == expected
        check_tiers_idle(engine)


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "int8", "fp8"])
@pytest.mark.full
def test_tokens_are_the_same_with_pages_of_every_kind(tiny_model, program_cache, kv_dtype):
    wide = {"num_pages": 400, "kv_dtype": kv_dtype, **SETTINGS}
    with small_engine(tiny_model, program_cache, **wide) as engine:
        right = answer_all(engine)
    with engine_of(tiny_model, program_cache, times=0.5, kv_dtype=kv_dtype, **HOST) as engine:
        assert answer_all(engine) == right
        assert engine._parts.scheduler.counters.tier_hit_tokens["host"] > 0
        check_tiers_idle(engine)


class HitModel:
    """What one request after the other finds, by the rules alone: lists of prefixes, no hashes."""

    def __init__(self, num_pages: int, below: str):
        self.free, self.below = num_pages, below
        self.device: OrderedDict[tuple, None] = OrderedDict()  # oldest first
        self.tier: set[tuple] = set()

    def ask(self, prompt: list[int], answer: list[int]) -> dict[str, int]:
        ids = prompt + answer
        pages = [tuple(ids[: (i + 1) * PAGE]) for i in range((len(ids) - 1) // PAGE)]
        within = pages[: (len(prompt) - 1) // PAGE]
        hits = next((i for i, page in enumerate(within) if page not in self.device), len(within))
        loaded = within[hits:]
        count = next((i for i, page in enumerate(loaded) if page not in self.tier), len(loaded))
        for page in pages[:hits]:
            del self.device[page]  # it is in use
        needed = -(-(len(ids) - 1) // PAGE) - hits
        while self.free < needed:
            self.tier.add(self.device.popitem(last=False)[0])
            self.free += 1
        self.free += -(-(len(ids) - 1) // PAGE) - len(pages) - needed  # what is not full is free
        self.device.update(dict.fromkeys(reversed(pages)))
        found = {"device": hits * PAGE, self.below: count * PAGE}
        return {tier: tokens for tier, tokens in found.items() if tokens}


@pytest.mark.parametrize("below", ["host", "disk"])
def test_hits_are_those_of_a_model(tiny_model, program_cache, tmp_path, below):
    options = HOST if below == "host" else {"kv_disk_path": str(tmp_path / "kv")}
    rng = np.random.default_rng(1)
    asked = [prompts()[i] for i in rng.integers(0, 8, 30)]
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        model = HitModel(engine.info.num_pages - 1, below)
        seen = set()
        for number, prompt in enumerate(asked):
            (output,) = engine.generate(prompt, params(number), use_tqdm=False)
            settle(engine)
            right = model.ask(prompt, output.outputs[0].token_ids)
            assert output.cached_tokens == right, number
            assert output.num_cached_tokens == sum(right.values())
            seen |= set(right)
        assert seen == {"device", below}
        check_tiers_idle(engine)


def test_disk_pages_are_found_after_a_restart(tiny_model, program_cache, expected, tmp_path):
    options = {"kv_disk_path": str(tmp_path / "kv"), "kv_write_hits": 0}
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        assert answer_all(engine) == expected
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        (output,) = engine.generate(prompts()[0], params(0), use_tqdm=False)
        assert output.cached_tokens == {"disk": (len(prompts()[0]) - 1) // PAGE * PAGE}
        assert output.outputs[0].token_ids == expected[0]
    other = options | {"kv_dtype": "bfloat16"}  # whose pages are others
    with engine_of(tiny_model, program_cache, times=0.5, **other) as engine:
        (output,) = engine.generate(prompts()[0], params(0), use_tqdm=False)
        assert output.cached_tokens == {}


def test_host_pages_are_found_on_disk_after_a_restart(
    tiny_model, program_cache, expected, tmp_path
):
    options = {"kv_disk_path": str(tmp_path / "kv"), **HOST}
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        assert answer_all(engine) == expected
        tiers = engine._parts.below.hierarchy.counters.tiers
        assert tiers["host"].pages_written > tiers["disk"].pages_written == 0
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        assert answer_all(engine) == expected
        assert engine._parts.scheduler.counters.tier_hit_tokens["disk"] > 200
        check_tiers_idle(engine)


def test_a_page_computed_by_one_worker_is_found_by_another(
    tiny_model, program_cache, expected, server
):
    server.ask(b"FLUSHALL")
    options = {"kv_remote_url": server.url, "kv_write_hits": 0}
    with (
        engine_of(tiny_model, program_cache, times=0.5, **options) as one,
        engine_of(tiny_model, program_cache, times=0.5, **options) as other,
    ):
        one.generate(prompts()[0], params(0), use_tqdm=False)
        settle(one)
        (output,) = other.generate(prompts()[0], params(0), use_tqdm=False)
        assert output.cached_tokens == {"remote": (len(prompts()[0]) - 1) // PAGE * PAGE}
        assert output.outputs[0].token_ids == expected[0]
        stream = other.stream(
            {"prompt_token_ids": prompts()[0], "reuse": {"device": False, "remote": False}},
            params(0),
        )
        assert [output.cached_tokens for output in stream][-1] == {}


def test_redis_may_be_killed_and_hang_at_any_time(tiny_model, program_cache, expected):
    pytest.importorskip("redis")
    with redis_server() as server:
        options = {"kv_remote_url": server.url, "kv_write_hits": 0}
        with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
            assert answer_all(engine) == expected
            took_s = []
            with server.stopped():
                for i in range(8):
                    began = time.monotonic()
                    (output,) = engine.generate(prompts()[i], params(i), use_tqdm=False)
                    took_s.append(time.monotonic() - began)
                    assert output.outputs[0].token_ids == expected[i]
            tier = engine._parts.below.hierarchy.stores[0]
            assert tier.breaker.num_openings >= 1
            # Each of the first waited for one time-out (0.1 s and its bytes); then nobody does.
            assert max(took_s) < 1.0
            assert np.median(took_s[4:]) < 0.1
            server.kill()
            assert answer_all(engine) == expected
            check_tiers_idle(engine)


def test_an_engine_closes_while_pages_are_on_their_way(tiny_model, program_cache):
    pytest.importorskip("redis")
    with redis_server() as server:
        options = {"kv_remote_url": server.url, "kv_write_hits": 0}
        engine = engine_of(tiny_model, program_cache, times=0.5, **options)
        with server.stopped():
            streams = [engine.stream(prompts()[i], params(i)) for i in range(3)]
            time.sleep(0.02)
            began = time.monotonic()
            engine.close()
            assert time.monotonic() - began < 2.0
        for stream in streams:
            with pytest.raises(Unavailable):
                list(stream)


@pytest.mark.parametrize(
    ("answer", "delay_s"), [(b"garbage\r\n", 0.0), (b"*1\r\n$3\r\nabc\r\n", 0.0), (b"$-1\r\n", 0.5)]
)
def test_a_mad_or_slow_redis_costs_a_time_out_and_no_token(
    tiny_model, program_cache, expected, answer, delay_s
):
    pytest.importorskip("redis")
    with answering(answer, delay_s) as url:
        options = {"kv_remote_url": url, "kv_write_hits": 0}
        with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
            assert answer_all(engine) == expected
            assert engine._parts.below.hierarchy.stores[0].breaker.num_openings >= 1
            assert engine._parts.scheduler.counters.tier_hit_tokens["remote"] == 0
            check_tiers_idle(engine)


def test_a_full_redis_costs_no_token(tiny_model, program_cache, expected):
    pytest.importorskip("redis")
    with redis_server("--maxmemory", "1200kb", "--maxmemory-policy", "noeviction") as server:
        options = {"kv_remote_url": server.url, "kv_write_hits": 0}
        with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
            assert answer_all(engine) == expected
            assert engine._parts.below.hierarchy.stores[0]._full_until_s > 0
            check_tiers_idle(engine)


def test_damaged_files_cost_hits_and_nothing_else(tiny_model, program_cache, expected, tmp_path):
    folder = tmp_path / "kv"
    options = {"kv_disk_path": str(folder), "kv_write_hits": 0}
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        answer_all(engine)
    files = sorted(path for path in folder.rglob("*.*") if path.is_file())
    rng = np.random.default_rng(0)
    for path in files:
        what = rng.integers(4)
        if what == 0:
            path.unlink()
        elif what == 1:
            os.truncate(path, int(rng.integers(path.stat().st_size)))
        elif what == 2:
            content = bytearray(path.read_bytes())
            content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
            path.write_bytes(content)
    with engine_of(tiny_model, program_cache, times=0.5, **options) as engine:
        assert answer_all(engine) == expected
        assert engine._parts.below.hierarchy.counters.tiers["disk"].pages_corrupt > 0
        check_tiers_idle(engine)


def test_metrics_show_each_tier(tiny_model, program_cache):
    with engine_of(tiny_model, program_cache, times=0.5, **HOST) as engine:
        answer_all(engine)
        value = engine.metrics.registry.get_sample_value
        labels = {"model_name": engine.info.name, "tier": "host"}
        assert value("rtp_jax:kv_tier_hit_tokens_total", labels) > 0
        assert value("rtp_jax:kv_tier_pages_written_total", labels) > 0
        assert value("rtp_jax:kv_tier_bytes", labels) > 0
        assert "host KV" in engine._parts.memory.table()


def test_tiers_without_a_prefix_cache_are_refused(tiny_model):
    with pytest.raises(InvalidArgument, match="RTPJ-1104 TIERS_NEED_PREFIX_CACHE"):
        Engine(str(tiny_model), kv_host_bytes=1 << 20, enable_prefix_caching=False)
