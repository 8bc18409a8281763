"""What do 200 gRPC streams cost beside the engine alone?  Time per output token, as a ratio.

    python -m bench.stream_cost [--model rtp-tiny] [--json FILE]

The same requests run through `Engine` in this process and through `rtp-jax serve` in another, in
turns.  TPOT of a request is (last - first token) / (tokens - 1), on the reader's side; a round's
figure is the median over its requests, the result the median of the rounds' ratios.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time

from bench.record import write_record
from rtp_jax import Engine, SamplingParams
from rtp_jax.sampling_params import OutputKind
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client import Client

ROUNDS = 5
NUM_STREAMS = 200
NUM_TOKENS = 64
PARAMS = SamplingParams(
    temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, output_kind=OutputKind.DELTA
)


def prompts(round_: int) -> list[list[int]]:
    """Make prompts that no earlier round has cached."""
    return [[5 + round_, 7 + i % 200, 9 + i // 200] * 8 for i in range(NUM_STREAMS)]


async def tpot_of(outputs) -> float:
    """Read a stream to its end and return its seconds per output token."""
    first = last = 0.0
    num_tokens = 0
    async for output in outputs:
        last = time.perf_counter()
        first = first or last
        num_tokens += sum(len(part.token_ids) for part in output.outputs)
    assert num_tokens == NUM_TOKENS
    return (last - first) / (num_tokens - 1)


async def engine_round(engine: Engine, round_: int) -> float:
    """Stream every prompt from the engine in this process."""
    streams = [tpot_of(engine.stream_async(prompt, PARAMS)) for prompt in prompts(round_)]
    return statistics.median(await asyncio.gather(*streams))


async def server_round(address: str, round_: int) -> float:
    """Stream every prompt from the server."""
    async with AsyncClient(address) as client:
        streams = [tpot_of(client.stream(prompt, PARAMS)) for prompt in prompts(round_)]
        return statistics.median(await asyncio.gather(*streams))


def start_server(model: str) -> tuple[subprocess.Popen, str]:
    """Start a server and wait until it serves."""
    command = [sys.executable, "-m", "rtp_jax.serving.main", "serve", model, "--port", "0"]
    command += ["--max-num-seqs", str(NUM_STREAMS)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    address = next(
        line.removeprefix("listening on ").strip()
        for line in server.stdout
        if line.startswith("listening on ")
    )
    with Client(address) as client:
        while not client.is_serving():
            time.sleep(0.2)
    return server, address


def measure(model: str) -> list[tuple[float, float]]:
    """Run the rounds in turns; seconds per token of the engine alone and of the server."""
    server, address = start_server(model)
    try:
        with Engine(model, max_num_seqs=NUM_STREAMS) as engine:
            rounds = [
                (asyncio.run(engine_round(engine, i)), asyncio.run(server_round(address, i)))
                for i in range(ROUNDS + 1)
            ]
    finally:
        server.terminate()
        server.wait()
    return rounds[1:]  # the first warms up


def main() -> None:
    """Print the rounds and their median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="rtp-tiny")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    rounds = measure(arguments.model)
    for alone, served in rounds:
        print(
            f"engine alone {alone * 1e3:7.2f} ms   {NUM_STREAMS} gRPC streams"
            f" {served * 1e3:7.2f} ms   ratio {served / alone:.3f}"
        )
    ratio = statistics.median(served / alone for alone, served in rounds)
    print(f"median ratio {ratio:.3f}")
    if arguments.json:
        figures = {"rounds_s_per_token": rounds, "median_ratio": ratio}
        write_record(arguments.json, "stream_cost", ("jax", "jaxlib", "grpcio"), figures)


if __name__ == "__main__":
    main()
