"""The side of the conversation that holds an engine: asked by lines, answers by lines.

An engine's file ends in `answer(lambda spec: ItsPeer(spec))`.  One JSON object a line comes on
stdin, and one goes out for each: `{"figures": {...}}` or `{"error": "..."}`.  Between questions
nothing is computed.  What engines print goes to stderr.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bench.peers import figures
from bench.peers.workloads import (
    DECODE_NEW,
    FIRST_PROMPT,
    Request,
    decode_prompts,
    fill_requests,
    kind_and_size,
    prompt_ids,
    served_requests,
)

PREFILLS = 3  # measured in one turn, after one that is not; their median counts
WARM_TOKENS = 24  # decoded before each measurement, more than prompts of a batch arrive apart


@dataclass(frozen=True)
class Spec:
    """Which engine is to be held ready."""

    scratch: str  # folder of models and builds, see `setup.py`
    model: str
    precision: str  # bf16, int8, int4, int4-pure
    threads: int  # and cores: the process is bound to as many


class Peer(Protocol):
    """What an engine must be able to do.  Greedy, no end of sequence, no prefix reuse."""

    def versions(self) -> dict[str, str]:
        """Name what is running, settings that matter included."""
        ...

    def prefill(self, prompt: list[int]) -> float:
        """Return the seconds from asking until the first token of one prompt is there."""
        ...

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """Decode all prompts together; returns tokens and seconds without the prefill."""
        ...

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Serve a mix; returns the times of each request's tokens, in seconds from the start."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def turn(peer: Peer, model: str, workload: str, round_number: int) -> dict[str, float]:
    """Warm up, measure one workload once, and return its figures."""
    kind, size = kind_and_size(workload)
    if kind == "first":
        return {"seconds": peer.prefill(prompt_ids(model, FIRST_PROMPT, round_number))}
    if kind == "prefill":
        prompts = [prompt_ids(model, size, round_number * 100 + i) for i in range(PREFILLS + 1)]
        seconds = figures.percentile([peer.prefill(prompt) for prompt in prompts][1:], 50)
        return {"tok_s": size / seconds, "ttft_s": seconds}
    if kind == "fill":
        streams = served(peer, fill_requests(model, round_number))
        return {"tokens_together": figures.steady(streams)[0]}  # ValueError if never all together
    batch = size if kind == "decode" else 2
    peer.decode(decode_prompts(model, batch, round_number + 500), WARM_TOKENS)
    if kind == "decode":
        tokens, seconds = peer.decode(decode_prompts(model, batch, round_number), DECODE_NEW + 1)
        return {"tok_s": tokens / seconds, "step_ms": 1e3 * seconds * batch / tokens}
    requests = served_requests(model, per_minute=size, seed=round_number)
    return figures.served_figures(
        [request.arrival_s for request in requests],
        sum(len(request.prompt) for request in requests),
        served(peer, requests),
    )


def served(peer: Peer, requests: list[Request]) -> list[list[float]]:
    """Serve a mix and return the times of its tokens; raises ValueError if any are missing."""
    streams = peer.serve(requests)
    for request, stream in zip(requests, streams, strict=True):
        if len(stream) != request.max_tokens:
            raise ValueError(f"{len(stream)} tokens came, {request.max_tokens} were asked for")
    return streams


def answer(make: Callable[[Spec], Peer]) -> None:
    """Build the engine of the spec in argv, say so, and answer questions until stdin ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no reply

    def reply(message: dict) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    spec = Spec(**json.loads(sys.argv[1]))
    cores = sorted(os.sched_getaffinity(0))[: spec.threads]
    os.sched_setaffinity(0, cores)  # some engines count cores, whatever they are told
    try:
        peer = make(spec)
    except Exception as error:
        traceback.print_exc()
        return reply({"error": f"{type(error).__name__}: {error}"})
    reply({"versions": peer.versions()})
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply({"figures": turn(peer, spec.model, question["workload"], question["round"])})
        except Exception as error:
            traceback.print_exc()
            reply({"error": f"{type(error).__name__}: {error}"})
    peer.close()
    return None
