"""Two hundred streams at once, on a real engine: all end; half are cut short, the rest are whole.

A stream is cut in one of four ways, cancelled, aborted, expired or disconnected, after 0 to 20
tokens; its neighbours' tokens are those that they have alone, and nothing is left in the engine.
"""

import asyncio
import contextlib
import time
from dataclasses import dataclass

import pytest

from rtp_jax import errors
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client_messages import RequestOptions
from tests.engine.workload import check_idle

NUM_STREAMS = 200
MAX_TOKENS = 24
NUM_CHANNELS = 4
WAYS = ("cancel", "abort", "expire", "disconnect")
AFTER = (0, 1, 5, 20)


@dataclass(frozen=True)
class Plan:
    """One stream: what it asks, and how it is cut short, if it is."""

    number: int
    way: str = ""
    after: int = 0

    @property
    def prompt(self) -> list[int]:
        """Token ids; many share a beginning."""
        shared = [20 + self.number % 5] * 40
        return [*shared, *(30 + self.number + i for i in range(self.number % 17 + 1))]

    @property
    def params(self) -> SamplingParams:
        """Half greedy, half seeded."""
        temperature = float(self.number % 4 >= 2)
        return SamplingParams(
            max_tokens=MAX_TOKENS, ignore_eos=True, seed=self.number, temperature=temperature
        )

    @property
    def request_id(self) -> str:
        """Its id, to be aborted by."""
        return f"stream-{self.way}-{self.after}-{self.number}"


async def follow(plan: Plan, client: AsyncClient, address: str) -> list[int]:
    """Read one stream to its end, planned or not; return its tokens."""
    async with contextlib.AsyncExitStack() as stack:
        if plan.way == "disconnect":
            client = await stack.enter_async_context(AsyncClient(address))
        timeout_s = 0.02 * (plan.after + 1) if plan.way == "expire" else None
        options = RequestOptions(request_id=plan.request_id, timeout_s=timeout_s)
        stream = client.stream(plan.prompt, plan.params, options)
        tokens: list[int] = []
        if plan.way == "abort" and plan.after == 0:
            await client.abort([plan.request_id])  # overtakes its request
        with contextlib.suppress(errors.Cancelled, errors.DeadlineExceeded):
            async with contextlib.aclosing(stream):
                if plan.way == "cancel" and plan.after == 0:
                    waiting = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0.01)
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    return tokens
                async for output in stream:
                    tokens += output.outputs[0].token_ids
                    if len(tokens) > plan.after and plan.way in ("cancel", "disconnect"):
                        break
                    if len(tokens) > plan.after and plan.way == "abort":
                        await client.abort([plan.request_id])
        return tokens


async def follow_all(plans: list[Plan], address: str) -> list[list[int]]:
    """Read all streams at once, over a few connections."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(AsyncClient(address)) for _ in range(NUM_CHANNELS)
        ]
        streams = [follow(plan, clients[plan.number % NUM_CHANNELS], address) for plan in plans]
        return await asyncio.wait_for(asyncio.gather(*streams), 120)


@pytest.fixture(scope="module")
def alone(built_in_engine) -> list[list[int]]:
    """Return what each stream says when the engine is asked directly."""
    plans = [Plan(number) for number in range(NUM_STREAMS)]
    outputs = built_in_engine.generate(
        [plan.prompt for plan in plans], [plan.params for plan in plans], use_tqdm=False
    )
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.capability("gRPC")
def test_two_hundred_streams_all_complete(built_in, built_in_engine, alone):
    plans = [Plan(number) for number in range(NUM_STREAMS)]
    assert asyncio.run(follow_all(plans, built_in.address)) == alone
    wait_until_idle(built_in_engine)


@pytest.mark.capability("abort")
@pytest.mark.capability("deadlines")
def test_half_of_them_cut_short_the_others_whole(built_in, built_in_engine, alone):
    plans = [
        Plan(number, WAYS[number // 2 % 4], AFTER[number // 8 % 4]) if number % 2 else Plan(number)
        for number in range(NUM_STREAMS)
    ]
    found = asyncio.run(follow_all(plans, built_in.address))
    for plan, tokens, whole in zip(plans, found, alone, strict=True):
        assert tokens == whole[: len(tokens)], plan
        if not plan.way:
            assert tokens == whole, plan
    short = [
        plan.way for plan, tokens in zip(plans, found, strict=True) if len(tokens) < MAX_TOKENS
    ]
    assert set(short) == set(WAYS)
    wait_until_idle(built_in_engine)
    assert not built_in.service.live_ids


def wait_until_idle(engine) -> None:
    """Give cancelled requests a moment to end, then hold the invariants."""
    until = time.monotonic() + 5
    while engine.loads().num_open_requests and time.monotonic() < until:
        time.sleep(0.01)
    check_idle(engine)
