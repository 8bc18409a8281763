"""`rtp-jax bench throughput`: `Engine.generate` over many prompts, in this process.

Every round has other token ids, so that it finds nothing in the prefix cache but what its own
prompts share; prompts that a trace spells out are the same in every round, so they are run once.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rtp_jax.benchmark.figures import medians
from rtp_jax.benchmark.options import count, not_together
from rtp_jax.benchmark.report import table, write_json
from rtp_jax.benchmark.workload import Planned
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.bench_engine import (
    add_engine,
    greedy,
    measured_engine,
    seed_of,
    settings_for,
)
from rtp_jax.serving.bench_flags import add_workload, described, workload_of
from rtp_jax.serving.flags import parse

ROUNDS = 1
WARM_TOKENS = 8


def throughput(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Time `Engine.generate` over many prompts."""
    add_engine(parser, rounds=ROUNDS)
    add_workload(parser)
    parsed = parse(parser, arguments)
    rounds = count("--rounds", parsed.rounds or str(ROUNDS))
    workload = workload_of(parsed)
    trace = workload.trace
    if trace is not None and trace.has_prompts and rounds > 1:
        raise not_together(
            ["--rounds", "--trace"],
            "its prompts are spelled out, and a second round would find them cached; leave --rounds"
            " out",
        )
    settings = settings_for(parsed, with_text=trace is not None and trace.has_text)
    workload = replace(workload, seed=seed_of(settings))
    with measured_engine("throughput", settings) as (engine, record):
        vocab_size = engine.info.vocab_size
        _run(engine, [Planned(tuple(range(WARM_TOKENS)), WARM_TOKENS)])
        draws = (workload.requests(vocab_size, draw) for draw in range(rounds))
        figures = medians([_run(engine, requests) for requests in draws])
    record |= {"workload": described(workload, parsed), **figures}
    write_json(parsed.json, record)
    rows: list[Sequence[str]] = [(f"rounds: {rounds}", "median", "lowest", "highest")]
    for name, ends in figures["ranges"].items():
        rows.append((name, *(f"{each:.2f}" for each in (figures[name], *ends))))
    print(table(rows))
    return 0


def _run(engine: Any, requests: Sequence[Planned]) -> dict[str, float]:
    """Run requests, all handed over at once, and reduce them to figures."""
    prompts = [
        each.prompt if isinstance(each.prompt, str) else {"prompt_token_ids": list(each.prompt)}
        for each in requests
    ]
    params = [greedy(each, OutputKind.FINAL_ONLY) for each in requests]
    began = time.perf_counter()
    outputs = engine.generate(prompts, params)
    duration_s = time.perf_counter() - began
    num_prompt = sum(len(output.prompt_token_ids) for output in outputs)
    num_output = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {
        "requests_per_s": len(requests) / duration_s,
        "output_tokens_per_s": num_output / duration_s,
        "total_tokens_per_s": (num_prompt + num_output) / duration_s,
        "duration_s": duration_s,
        "prompt_tokens": num_prompt,
        "output_tokens": num_output,
        "cached_tokens": sum(output.num_cached_tokens for output in outputs),
    }
