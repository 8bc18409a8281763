"""When is each request sent, and what is seen of it?  The clock of a run, at the client.

Open loop: requests arrive when the workload says, however busy the server is, and their times
count from that arrival, so that a client that sends late hides nothing (coordinated omission).
Closed loop: as many as `concurrency` at once; one that ends makes room for the next.  With both,
an arrival waits for room, and the wait counts.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rtp_jax.benchmark.targets import Asking, Message, RequestFailed, Target
from rtp_jax.benchmark.workload import Planned


@dataclass(slots=True)
class Observed:
    """One request as its client saw it; times are seconds from the start of the run."""

    planned: Planned
    at_s: float = 0.0  # when it arrived: as planned, or in a closed loop when it was sent
    sent_s: float = 0.0
    ended_s: float = 0.0
    messages: list[tuple[float, int | None]] = field(default_factory=list)  # that brought tokens
    num_prompt_tokens: int | None = None  # None: the server did not say
    num_output_tokens: int | None = None
    num_cached_tokens: int | None = None
    failure: str | None = None


async def drive(
    target: Target,
    requests: Sequence[Planned],
    asking: Asking,
    *,
    concurrency: int | None,
    on_end: Callable[[], object] = lambda: None,
) -> list[Observed]:
    """Send requests and read their streams; returns when all have ended, in their order.

    Args:
      target: the server.
      requests: either all say when they arrive, or none does and `concurrency` is given.
      asking: what is the same in all of them.
      concurrency: how many may run at once; None: any number.
      on_end: called when a request has ended.
    """
    assert concurrency is not None or all(each.at_s is not None for each in requests)
    room = contextlib.nullcontext() if concurrency is None else asyncio.Semaphore(concurrency)
    began = time.perf_counter()

    async def run(planned: Planned) -> Observed:
        seen = Observed(planned)
        if planned.at_s is not None:
            await asyncio.sleep(max(0.0, began + planned.at_s - time.perf_counter()))
        async with room:  # whoever came first goes first
            await _observe(target, asking, seen, began)
        on_end()
        return seen

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(planned)) for planned in requests]
    return [task.result() for task in tasks]


async def _observe(target: Target, asking: Asking, seen: Observed, began: float) -> None:
    """Send one request and note what comes, and when."""
    seen.sent_s = time.perf_counter() - began
    seen.at_s = seen.sent_s if seen.planned.at_s is None else seen.planned.at_s
    try:
        async for message in target.stream(seen.planned, asking):
            if message.num_tokens != 0:
                seen.messages.append((time.perf_counter() - began, _num_tokens(message, seen)))
            if message.num_prompt_tokens is not None:
                seen.num_prompt_tokens = message.num_prompt_tokens
            if message.num_output_tokens is not None:
                seen.num_output_tokens = message.num_output_tokens
            if message.num_cached_tokens is not None:
                seen.num_cached_tokens = message.num_cached_tokens
    except RequestFailed as failure:
        seen.failure = str(failure)
    seen.ended_s = time.perf_counter() - began
    if seen.failure is None and not seen.messages:
        seen.failure = "no token came"


def _num_tokens(message: Message, seen: Observed) -> int | None:
    """Count the tokens of a message: as it says, or by what the usage of so far has grown."""
    if message.num_tokens is not None or message.num_output_tokens is None:
        return message.num_tokens
    before = [num_tokens for _, num_tokens in seen.messages]
    return None if None in before else message.num_output_tokens - sum(filter(None, before))
