"""Fifty requests of every kind, and engines to run them on: what the engine tests share."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtp_jax import Engine, SamplingParams
from rtp_jax.outputs import RequestOutput

SMALL = {  # four programs, quick to compile
    "dtype": "float32",
    "max_model_len": 320,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 64,
    "num_pages": 400,
    "page_size": 16,
}


@dataclass(frozen=True)
class Case:
    """A prompt and how to continue it."""

    prompt: list[int]
    params: SamplingParams


def cases(count: int = 50, *, vocab: int = 440, seed: int = 0) -> list[Case]:
    """Make requests of mixed lengths, seeds and options; some share prefixes, some want n > 1."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, vocab, 96).tolist()
    made = []
    for i in range(count):
        tail = rng.integers(3, vocab, int(rng.integers(1, 60))).tolist()
        prompt = shared[: int(rng.choice([0, 16, 40, 96]))] + tail
        made.append(Case(prompt, _params(i, rng, vocab)))
    return made


def _params(i: int, rng: np.random.Generator, vocab: int) -> SamplingParams:
    base = SamplingParams(
        max_tokens=int(rng.integers(4, 40)), ignore_eos=True, seed=int(i), temperature=0.0
    )
    kinds = [
        {},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40},
        {"temperature": 1.2, "min_p": 0.05},
        {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2},
        {"temperature": 1.0, "n": 3},
        {"logit_bias": {5: 2.0, 9: -50.0}, "temperature": 0.7},
        {"allowed_token_ids": list(range(10, 60)), "temperature": 1.0},
        {
            "min_tokens": 3,
            "ignore_eos": False,
            "stop_token_ids": list(range(0, min(vocab, 700), 3)),
        },
        {"logprobs": 3, "temperature": 0.9},
        {"prompt_logprobs": 2},
        {"bad_words": ["the", "a page"], "temperature": 1.0},
        {"stop": ["e", "qu"], "temperature": 1.0},
    ]
    return dataclasses.replace(base, **kinds[i % len(kinds)])


def run_together(engine: Engine, work: list[Case]) -> list[RequestOutput]:
    """Submit everything at once."""
    return engine.generate([c.prompt for c in work], [c.params for c in work], use_tqdm=False)


def run_alone(engine: Engine, work: list[Case]) -> list[RequestOutput]:
    """Submit one request at a time."""
    return [engine.generate(c.prompt, c.params, use_tqdm=False)[0] for c in work]


def tokens(outputs: list[RequestOutput]) -> list[list[list[int]]]:
    """List the token ids of each completion of each request."""
    return [[part.token_ids for part in output.outputs] for output in outputs]


def check_idle(engine: Engine) -> None:
    """Hold the invariants of an engine that has nothing to do."""
    scheduler = engine._parts.scheduler
    until = time.monotonic() + 5  # the loop may still be about to commit a surplus step
    while time.monotonic() < until and (scheduler._in_flight or engine.loads().num_open_requests):
        time.sleep(0.002)
    assert not scheduler.has_work
    assert not scheduler._in_flight
    scheduler._ledger.pool.check()
    loads = engine.loads()
    assert loads.num_running == loads.num_waiting == loads.num_open_requests == 0
    assert loads.num_free_pages + loads.num_cached_pages == loads.num_pages
    assert engine.metrics.compile_after_ready == 0


def small_engine(model: Path | str, cache: Path, **options: object) -> Engine:
    """Start an engine whose programs are shared by the tests of a session."""
    return Engine(str(model), compile_cache=str(cache), **{**SMALL, **options})
