"""Workers and routers are killed, stopped and restarted under load; no client sees anything of it.

Every request completes with the tokens it would have had, greedy and seeded, without a gap or a
repeat: its tokens are held against those of one worker that nobody disturbs.
"""

import asyncio
import random
import signal
import time

import pytest

from rtp_jax import SamplingParams
from rtp_jax.serving.async_client import AsyncClient
from rtp_jax.serving.client_messages import RequestOptions
from rtp_jax.serving.status_command import ask
from tests.engine.workload import SMALL
from tests.serving.cluster import Cluster, cluster
from tests.standstills import standstills

NUM_STREAMS = 8
TOKENS = 250
NOTICED_S = 5.0  # by when a client has left a router that stands still


def work(count: int = NUM_STREAMS, seed: int = 0) -> list[tuple[list[int], SamplingParams]]:
    """Make requests, every second one greedy."""
    rng = random.Random(seed)
    return [
        (
            [rng.randrange(5, 400) for _ in range(rng.randrange(4, 60))],
            SamplingParams(
                max_tokens=TOKENS,
                temperature=float(i % 2),
                seed=1000 * seed + i if i % 4 else None,
                ignore_eos=True,
                logprobs=0 if i % 3 == 0 else None,
            ),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def many(tiny_model, program_cache):
    """Two workers and two routers."""
    options = {**SMALL, "compile_cache": program_cache, "stall_timeout_s": 30}
    with cluster(str(tiny_model), num_workers=2, num_routers=2, options=options) as made:
        yield made


async def run_all(client: AsyncClient, requests, *, name: str, disturb=None) -> list[tuple]:
    """Stream all requests at once; `disturb` runs when the first of them has some tokens."""
    going = asyncio.Event()

    async def one(number: int, prompt, params):
        ids, text = [], ""
        options = RequestOptions(request_id=f"{name}-{number}")
        async for output in client.stream(prompt, params, options):
            ids += output.outputs[0].token_ids
            text += output.outputs[0].text
            if len(ids) > 10:
                going.set()
        return ids, text, output.outputs[0].finish_reason

    tasks = [asyncio.ensure_future(one(i, *each)) for i, each in enumerate(requests)]
    if disturb is not None:
        await going.wait()
        await disturb()
    return await asyncio.gather(*tasks)


def undisturbed(many: Cluster, requests, name: str) -> list[tuple]:
    """Return what the requests give when all is well."""

    async def run():
        async with AsyncClient(many.targets) as client:
            return await run_all(client, requests, name=name)

    return asyncio.run(run())


def disturbed(many: Cluster, requests, name: str, disturb) -> list[tuple]:
    """Return what the requests give while something happens."""

    async def run():
        async with AsyncClient(many.targets) as client:
            return await run_all(client, requests, name=name, disturb=disturb)

    return asyncio.run(run())


def restore(many: Cluster) -> None:
    """Start what has ended, and wait until everybody sees everybody."""
    for member in (*many.workers, *many.routers):
        assert member.popen is not None
        if member.popen.poll() is not None:
            member.start()
    for member in (*many.workers, *many.routers):
        member.wait()
    many.wait_for_workers(len(many.workers))


def kill_a_worker(many: Cluster, rng: random.Random) -> None:
    requests = work(seed=rng.randrange(1000))
    name = f"k{rng.getrandbits(40)}"
    expected = undisturbed(many, requests, name)

    async def disturb():
        await asyncio.sleep(rng.random() * 0.2)
        rng.choice(many.workers).kill()

    assert disturbed(many, requests, name, disturb) == expected
    restore(many)


def stop_a_worker(many: Cluster, rng: random.Random) -> None:
    requests = work(seed=rng.randrange(1000))
    name = f"s{rng.getrandbits(40)}"
    expected = undisturbed(many, requests, name)
    worker = rng.choice(many.workers)

    async def disturb():
        worker.kill(signal.SIGSTOP)

    try:
        assert disturbed(many, requests, name, disturb) == expected
    finally:
        worker.kill(signal.SIGCONT)
    many.wait_for_workers(len(many.workers))
    assert undisturbed(many, requests, name) == expected  # it is as good as before


def kill_a_router(many: Cluster, rng: random.Random) -> None:
    requests = work(seed=rng.randrange(1000))
    name = f"r{rng.getrandbits(40)}"
    expected = undisturbed(many, requests, name)

    async def disturb():
        await asyncio.sleep(rng.random() * 0.2)
        many.routers[0].kill()  # to which all streams go

    assert disturbed(many, requests, name, disturb) == expected
    restore(many)


def stop_a_router(many: Cluster, rng: random.Random) -> None:
    requests = work(seed=rng.randrange(1000))
    name = f"p{rng.getrandbits(40)}"
    watch, began_s = standstills(), time.monotonic()
    expected = undisturbed(many, requests, name)
    calm_s = watch.spent_s(began_s, time.monotonic())
    router = many.routers[0]  # to which all streams go
    began_s = time.monotonic()

    async def disturb():
        await asyncio.sleep(rng.random() * 0.2)
        router.kill(signal.SIGSTOP)

    try:
        assert disturbed(many, requests, name, disturb) == expected
        assert watch.spent_s(began_s, time.monotonic()) < 2 * calm_s + NOTICED_S
        began_s = time.monotonic()
        undisturbed(many, requests[:2], f"{name}-meanwhile")  # whoever comes finds the other
        assert watch.spent_s(began_s, time.monotonic()) < calm_s + NOTICED_S
    finally:
        router.kill(signal.SIGCONT)
    many.wait_until_idle()
    assert undisturbed(many, requests, name) == expected  # it is as good as before


@pytest.mark.capability("router")
def test_a_worker_is_killed(many):
    kill_a_worker(many, random.Random(1))


def test_a_worker_stands_still(many):
    stop_a_worker(many, random.Random(2))


def test_a_router_is_killed(many):
    kill_a_router(many, random.Random(3))


def test_a_router_stands_still(many):
    stop_a_router(many, random.Random(5))


def restart_all(many: Cluster, seed: int) -> int:
    """Restart every worker in turn under load; return how many requests came through."""
    requests = work(3, seed)
    done = 0

    async def run():
        nonlocal done
        over = asyncio.Event()

        async def load():
            nonlocal done
            async with AsyncClient(many.targets) as client:
                while not over.is_set():
                    name = f"during-{seed}-{done}"
                    results = await run_all(client, with_seeds(requests), name=name)
                    assert [each[0] for each in results] == [each[0] for each in seeded]
                    done += len(results)

        loading = asyncio.ensure_future(load())
        for worker in many.workers:
            await asyncio.sleep(0.3)
            worker.kill(signal.SIGTERM)
            code = await asyncio.to_thread(worker.end)
            assert code == 0
            await asyncio.to_thread(worker.start().wait)
            await asyncio.to_thread(many.wait_for_workers, len(many.workers))
        over.set()
        await loading

    seeded = undisturbed(many, with_seeds(requests), f"seeded-{seed}")
    asyncio.run(run())
    return done


def with_seeds(requests):
    """Give every request a seed: without one, its id decides."""
    return [
        (prompt, SamplingParams(max_tokens=100, temperature=1.0, seed=i, ignore_eos=True))
        for i, (prompt, _) in enumerate(requests)
    ]


def test_all_workers_are_restarted_under_load(many):
    assert restart_all(many, 4) >= 6
    status = ask(many.targets[0])
    assert status.num_failed == 0
    assert {worker.state for worker in status.workers} == {1}


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("fault", [kill_a_worker, stop_a_worker, kill_a_router, stop_a_router])
def test_twenty_times_at_random_moments(many, fault, seed):
    fault(many, random.Random(100 + seed))
