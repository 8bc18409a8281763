"""`rtp-jax bench latency`: one batch in this process, timed where its outputs are read.

Token ids are random, by seed, and end-of-sequence tokens are ignored.  Every round has other ids,
so that none finds its prompts in the prefix cache.  docs/benchmarks.md defines each figure.
"""

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rtp_jax.benchmark.figures import medians
from rtp_jax.benchmark.lengths import Lengths
from rtp_jax.benchmark.options import count
from rtp_jax.benchmark.report import table, write_json
from rtp_jax.benchmark.workload import Planned, Workload
from rtp_jax.errors import InvalidArgument
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.bench_engine import (
    add_engine,
    greedy,
    measured_engine,
    seed_of,
    settings_for,
)
from rtp_jax.serving.flags import parse

ROUNDS = 5
ROWS = (  # label, figure, how much of it is one of the label's unit
    ("prefill, tokens/s", "prefill_tokens_per_s", 1.0),
    ("decode, tokens/s", "decode_tokens_per_s", 1.0),
    ("TTFT, ms", "ttft_s", 1e-3),
    ("TPOT, ms", "tpot_s", 1e-3),
    ("cached tokens", "cached_tokens", 1.0),
)


@dataclass(slots=True)
class Stream:
    """What came of one request, and when: seconds from the start of its round."""

    num_prompt_tokens: int
    times_s: list[float] = field(default_factory=list)  # of each output with tokens
    counts: list[int] = field(default_factory=list)  # tokens in each
    num_cached_tokens: int = 0

    @property
    def tpot_s(self) -> float:
        """Time per output token; there are at least two."""
        return (self.times_s[-1] - self.times_s[0]) / (sum(self.counts) - 1)

    def tokens_until(self, moment_s: float) -> int:
        """Count the tokens that had come by a moment."""
        found = zip(self.times_s, self.counts, strict=True)
        return sum(num_tokens for time_s, num_tokens in found if time_s <= moment_s)


def latency(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Time one batch, from its submission to its last token."""
    add_engine(parser, rounds=ROUNDS)
    parser.add_argument("--batch", default="1", metavar="N", help="requests at once; default: 1")
    parser.add_argument("--prompt-tokens", default="512", metavar="N", help="default: 512")
    parser.add_argument("--output-tokens", default="64", metavar="N", help="default: 64")
    parsed = parse(parser, arguments)
    options = {
        "batch": count("--batch", parsed.batch),
        "prompt_tokens": count("--prompt-tokens", parsed.prompt_tokens),
        "output_tokens": count("--output-tokens", parsed.output_tokens, least=2),
        "rounds": count("--rounds", parsed.rounds or str(ROUNDS)),
    }
    settings = settings_for(parsed, with_text=False, num_seqs=options["batch"])
    workload = Workload(
        num_requests=options["batch"],
        prompt_tokens=Lengths.fixed(options["prompt_tokens"]),
        output_tokens=Lengths.fixed(options["output_tokens"]),
        seed=seed_of(settings),
    )
    with measured_engine("latency", settings) as (engine, record):
        vocab_size = engine.info.vocab_size
        draws = [workload.requests(vocab_size, draw) for draw in range(options["rounds"] + 1)]
        figures = medians(asyncio.run(_rounds(engine, draws)))
    record |= {"options": options, **figures}
    write_json(parsed.json, record)
    rows: list[Sequence[str]] = [(f"rounds: {options['rounds']}", "median", "lowest", "highest")]
    for label, name, unit in ROWS:
        values = (figures[name], *figures["ranges"][name])
        rows.append((label, *(f"{each / unit:.2f}" for each in values)))
    print(table(rows))
    return 0


async def _rounds(engine: Any, draws: Sequence[Sequence[Planned]]) -> list[dict[str, float]]:
    """Run rounds, one after the other; the first warms up and is left out."""
    measured = []
    for requests in draws:
        began = time.perf_counter()
        reads = [_read(engine, request, began) for request in requests]
        measured.append(round_figures(await asyncio.gather(*reads)))
    return measured[1:]


async def _read(engine: Any, request: Planned, began: float) -> Stream:
    stream = Stream(len(request.prompt))
    params = greedy(request, OutputKind.DELTA)
    async for output in engine.stream_async(request.prompt, params):
        if num_tokens := len(output.outputs[0].token_ids):
            stream.times_s.append(time.perf_counter() - began)
            stream.counts.append(num_tokens)
        stream.num_cached_tokens = output.num_cached_tokens
    return stream


def round_figures(streams: Sequence[Stream]) -> dict[str, float]:
    """Reduce one round to its figures.

    Prefill ends with the first token of the request that began last.  Decoding is timed while the
    whole batch decodes: from there to the last token of the request that ended first.

        one    ..p..|d..d..d..d..d..d|
        other  .....p.....|d..d..d..d..d..d
               [ prefill ][ decode   ]

    Raises:
      InvalidArgument: there was no moment at which the whole batch decoded.
    """
    last = max(streams, key=lambda stream: stream.times_s[0])
    begin, end = last.times_s[0], min(stream.times_s[-1] for stream in streams)
    if end <= begin:
        raise _never_whole(streams, begin)
    # Outputs of one step are read one after the other: half a step separates it from the next.
    half = (last.times_s[1] - begin) / 2
    num_decoded = sum(
        stream.tokens_until(end + half) - stream.tokens_until(begin + half) for stream in streams
    )
    return {
        "prefill_tokens_per_s": sum(stream.num_prompt_tokens for stream in streams) / begin,
        "decode_tokens_per_s": num_decoded / (end - begin),
        "ttft_s": statistics.median(stream.times_s[0] for stream in streams),
        "tpot_s": statistics.median(stream.tpot_s for stream in streams),
        "cached_tokens": sum(stream.num_cached_tokens for stream in streams),
    }


def _never_whole(streams: Sequence[Stream], begin: float) -> InvalidArgument:
    # How many tokens the first ones would have had by then, at their pace; and as many after it.
    ahead = max(1 + (begin - stream.times_s[0]) / max(stream.tpot_s, 1e-4) for stream in streams)
    return InvalidArgument(
        f"RTPJ-5509 BATCH_NEVER_WHOLE: of {len(streams)} requests one ended before the last had its"
        f" first token, so the whole batch never decoded together. Raise --output-tokens to about"
        f" {2 * math.ceil(ahead)}, or lower --batch.",
        field="output_tokens",
    )
