"""What is loading KV pages from a tier worth, and does the engine choose the cheaper way?

    python -m bench.kv_tiers MODEL --json FILE [--redis-server redis-server] [--tokens 1024]

For each tier: prompts of `--tokens` tokens of which three quarters were computed before and have
left the device, each prompt sent in these ways, in turns, so that what disturbs one disturbs all:

    cold    nothing may be reused
    load    the tier is used, whatever it costs
    auto    the engine chooses by what it has measured
    device  the pages are still on the device: what no tier can be faster than

The figure is the median time to first token.  `cheaper` is the better of cold and load; `chosen` is
what the engine did in most of the auto runs.
"""

import argparse
import contextlib
import dataclasses
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator

import numpy as np

from bench.record import machine, write_record
from rtp_jax import Engine, SamplingParams
from rtp_jax.outputs import RequestOutput
from rtp_jax.serving.serve_command import tune_process

TIERS = ("host", "disk", "remote")
WAYS = ("cold", "load", "auto", "device")
REUSED = 0.75  # of a prompt
ONE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
PORT = 16379


def main(options: argparse.Namespace) -> None:
    """Print and keep one row for each tier."""
    tune_process()
    print(machine())
    rows = [row for tier in options.tiers for row in measured(options, tier)]
    if options.json:
        name = options.model.rstrip("/").rsplit("/", 1)[-1]
        figures = {"model": name, "tokens": options.tokens, "rows": rows}
        write_record(options.json, "kv_tiers", ("jax", "jaxlib", "redis"), figures)


def measured(options: argparse.Namespace, tier: str) -> Iterator[dict]:
    """Run one tier on an engine of its own."""
    with tempfile.TemporaryDirectory() as folder, store(options, tier) as url:
        settings = {
            "host": {"kv_host_bytes": options.bytes},
            "disk": {"kv_disk_path": f"{folder}/kv", "kv_disk_bytes": options.bytes},
            "remote": {"kv_remote_url": url},
        }[tier]
        # The device has room for one prompt and a little: the next one drives it out.
        pages = options.tokens // options.page_size * 5 // 4 + 4
        with Engine(
            options.model,
            num_pages=pages,
            page_size=options.page_size,
            max_model_len=options.tokens + 2 * options.page_size,
            max_num_seqs=2,
            max_num_batched_tokens=options.step,
            kv_staging_bytes=options.bytes // 2,
            **settings,
        ) as engine:
            yield rows_of(engine, tier, options)


def rows_of(engine: Engine, tier: str, options: argparse.Namespace) -> dict:
    """Send the prompts of one tier, each way in turn."""
    rng, below = np.random.default_rng(0), engine._parts.below.hierarchy
    assert below is not None
    length = int(options.tokens * REUSED) // options.page_size * options.page_size
    shared = [rng.integers(3, engine.info.vocab_size - 200, length).tolist() for _ in range(3)]
    for prompt in (*shared, *shared):
        ask(engine, [*prompt, 5], below)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    chosen = []
    for number in range(options.rounds):
        for way in seconds:
            below.options = dataclasses.replace(
                below.options, load="always" if way == "load" else "auto"
            )
            own = rng.integers(3, engine.info.vocab_size - 200, options.tokens - length).tolist()
            prompt: object = shared[number % 3] + own
            for other in (0,) if way == "device" else (1, 2):  # others drive it out of the device
                ask(engine, shared[(number + other) % 3], below)
            if way == "cold":
                refused = dict.fromkeys((tier, "device"), False)
                prompt = {"prompt_token_ids": prompt, "reuse": refused}
            output = ask(engine, prompt, below)
            assert output.timing.first_token_s is not None
            found = output.cached_tokens.get("device" if way == "device" else tier, 0)
            assert way != "device" or found == length, output.cached_tokens
            assert way != "load" or found == length, output.cached_tokens
            assert way != "cold" or not output.cached_tokens
            seconds[way].append(output.timing.first_token_s)
            chosen += [found > 0] * (way == "auto")
    return shown(tier, seconds, chosen)


def shown(tier: str, seconds: dict[str, list[float]], chosen: list[bool]) -> dict:
    """Print a row and return it."""
    median = {way: statistics.median(each) for way, each in seconds.items()}
    cheaper = min(("cold", "load"), key=median.__getitem__)
    row = {
        "tier": tier,
        **{f"{way}_ms": round(1e3 * each, 2) for way, each in median.items()},
        "load_of_cold": round(median["load"] / median["cold"], 3),
        "cheaper": cheaper,
        "chosen": "load" if sum(chosen) * 2 > len(chosen) else "cold",
        "rounds": len(chosen),
    }
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    return row


def ask(engine: Engine, prompt: object, below) -> RequestOutput:
    """Generate one token, and let pages that the device gave up reach their tier."""
    (output,) = engine.generate([prompt], ONE, use_tqdm=False)
    until = time.monotonic() + 60
    while engine._parts.scheduler.has_moves and time.monotonic() < until:
        time.sleep(0.001)
    assert below.settle(60), "pages are still on their way"
    return output


@contextlib.contextmanager
def store(options: argparse.Namespace, tier: str) -> Iterator[str]:
    """Run a Redis on loopback while the remote tier is measured."""
    if tier != "remote":
        yield ""
        return
    command = [options.redis_server, "--port", str(PORT), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/") as server:
        try:
            time.sleep(0.5)
            yield f"redis://127.0.0.1:{PORT}/0"
        finally:
            server.kill()


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or rtp-tiny")
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=TIERS)
    parser.add_argument("--tokens", type=int, default=1024, help="of a prompt")
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--step", type=int, default=512, help="tokens of a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--bytes", type=int, default=2 << 30, help="budget of a tier")
    parser.add_argument("--redis-server", default="redis-server")
    parser.add_argument("--json", help="file for the figures")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments())
