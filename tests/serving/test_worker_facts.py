"""What a controller learns of a worker: its epoch, once in each life, if need be with a token."""

import threading

import pytest

from rtp_jax.errors import Unauthenticated, Unavailable
from rtp_jax.serving.cluster.worker_facts import Asking, Facts, ask_worker
from tests.serving.routers import until


def test_a_worker_says_who_it_is_to_those_with_a_token(servers, real_engine, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("a-secret-of-ours\n")
    address = servers.start(real_engine, auth_token_file=str(tokens)).address
    facts = ask_worker(address, token="a-secret-of-ours", tls=None)
    assert facts.epoch == real_engine.info.epoch
    with pytest.raises(Unauthenticated, match="RTPJ-5201"):
        ask_worker(address, token=None, tls=None)


def test_one_that_is_not_there_says_nothing():
    with pytest.raises(Unavailable, match="RTPJ-5101"):
        ask_worker("127.0.0.1:1", token=None, tls=None)


def test_asking_holds_nobody_up_and_knows_one_life_from_another():
    go, asked = threading.Event(), []

    def ask(address: str) -> Facts:
        assert go.wait(10)
        asked.append(address)
        return Facts(f"epoch {len(asked)}")

    asking = Asking(ask)
    assert asking.facts_of("w 1", "h:1", 0.0) is None  # at once, although nobody answers
    go.set()
    found = []

    def heard(life: str) -> bool:
        if facts := asking.facts_of(life, "h:1", 0.0):
            found.append(facts)
        return bool(facts)

    until(lambda: heard("w 2"))  # the first life ended before anybody wanted to know
    until(lambda: heard("w 1"))
    assert {facts.epoch for facts in found} == {"epoch 1", "epoch 2"}
    assert asked == ["h:1", "h:1"]
    asking.close()
