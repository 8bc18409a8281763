"""Health: a canary before, a watchdog after."""

import asyncio
import time

import pytest

from rtp_jax.errors import Internal
from rtp_jax.serving.health import Health, Watchdog, canary, dump_stacks
from tests.serving.fake_engine import FakeEngine


class Mute(FakeEngine):
    """An engine that answers with nothing."""

    async def _outputs(self, *args):
        async for output in super()._outputs(*args):
            output.outputs[0].token_ids = []
            if output.finished:
                yield output


class Slow(FakeEngine):
    """An engine that takes its time."""

    def _extend(self, *args):
        time.sleep(0.05)
        super()._extend(*args)


@pytest.mark.smoke
@pytest.mark.capability("health")
def test_the_canary_generates():
    assert asyncio.run(canary(FakeEngine())) < 1
    assert asyncio.run(canary(FakeEngine(with_tokenizer=False))) < 1


def test_a_canary_that_fails_says_why():
    with pytest.raises(Internal, match=r"RTPJ-5301 CANARY_FAILED.*nothing came"):
        asyncio.run(canary(Mute()))
    with pytest.raises(Internal, match=r"CANARY_FAILED.*RTPJ-4001"):
        asyncio.run(canary(Slow(), timeout_s=0.01))


def watched(
    engine: FakeEngine, *, seconds: float, then=None, retired: list[str] | None = None
) -> tuple[list[bool], list[str]]:
    """Watch an engine for some time; return the healths that were said, and its death."""
    said, deaths, retired = [], [], [] if retired is None else retired

    async def watch() -> None:
        health = Health()
        await health.start()
        await health.say(True, "")
        watchdog = Watchdog(engine, health, 0.1, deaths.append, retired.append, period_s=0.01)
        task = asyncio.create_task(watchdog.run())
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not said or said[-1] != health.serving:
                said.append(health.serving)
                if then and not health.serving:
                    then()
            await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(watch())
    return said, deaths


def test_a_healthy_engine_stays_serving():
    assert watched(FakeEngine(), seconds=0.3) == ([True], [])


def test_a_dead_loop_is_noticed(capfd):
    engine = FakeEngine()
    engine.alive = False
    assert watched(engine, seconds=0.2) == ([True, False], ["its loop has ended"])


def test_a_stuck_loop_that_moves_again_serves_again(capfd):
    engine = FakeEngine()
    engine.stuck_since_s = time.monotonic()

    def moves() -> None:
        engine.stuck_since_s = None

    assert watched(engine, seconds=0.4, then=moves) == ([True, False, True], [])
    assert "test_health.py" in capfd.readouterr().err  # the stacks


def test_a_loop_that_stays_stuck_is_lost(capfd):
    engine = FakeEngine()
    engine.stuck_since_s = time.monotonic()
    said, deaths = watched(engine, seconds=0.5)
    assert said == [True, False]
    assert len(deaths) == 1


def test_an_engine_that_should_retire_is_noticed_and_not_lost():
    engine, retired = FakeEngine(), []
    engine.transfer.retires = "too much is stuck"
    assert watched(engine, seconds=0.2, retired=retired) == ([True], [])
    assert set(retired) == {"too much is stuck"}


def test_stacks_need_a_real_standard_error(caplog, capsys):
    dump_stacks()
    assert "cannot take stacks" in caplog.text
