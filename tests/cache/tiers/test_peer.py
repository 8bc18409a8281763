"""Peers as a tier: for how long may one say nothing?"""

import time
from types import SimpleNamespace

import pytest

from rtp_jax.cache.tiers.peer import PeerTier
from rtp_jax.cache.tiers.tier import Wanted
from rtp_jax.request import Request
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.transfer.hop import Hop
from rtp_jax.transfer.peer import Peers
from rtp_jax.transfer.pull import Pulled
from rtp_jax.transfer.stop import Stop
from tests.fault_proxy import FaultProxy
from tests.standstills import standstills
from tests.transfer.served import LAYOUT, PAGE_SIZE, FakePrefiller, KvServer, chain_of


@pytest.fixture
def server():
    with KvServer(FakePrefiller(lease_s=0.5)) as made:
        yield made


@pytest.fixture
def peers():
    made = Peers(LAYOUT)
    yield made
    made.close()


def wanted(address: str, num_pages: int = 2) -> Wanted:
    """Want the pages of a prompt that a peer may compute."""
    ids = tuple(range(num_pages * PAGE_SIZE))
    chain = chain_of(ids)
    request = Request(id="r", prompt_token_ids=ids, params=SamplingParams(), prefill_at=(address,))
    return Wanted(request, 0, chain.root, tuple(chain.keys), tuple(chain.packed))


def tier_of(peers: Peers, own_s: float | None) -> tuple[PeerTier, list[Pulled]]:
    """Make a tier whose engine computes everything in `own_s`; and what came of asking."""
    results: list[Pulled] = []
    asker = SimpleNamespace(peers=lambda: peers, pulled=results.append)
    tier = PeerTier(
        lambda: asker,
        page_size=PAGE_SIZE,
        hop=Hop(0),
        least_stall_s=0.5,
        compute_s=lambda num_tokens: own_s,
    )
    return tier, results


@pytest.mark.parametrize(("own_s", "least_s", "most_s"), [(1e-3, 0.5, 0.95), (0.8, 0.8, 1.25)])
def test_a_silent_peer_is_waited_for_as_long_as_computing_takes(
    peers, server, own_s, least_s, most_s
):
    watch, (tier, results) = standstills(), tier_of(peers, own_s)
    with FaultProxy(server.port) as proxy:
        proxy.stopped = True
        began_s = time.monotonic()
        assert list(tier.read(wanted(proxy.address), Stop())) == []
        ended_s = time.monotonic()
        assert least_s * 0.98 < ended_s - began_s
        assert watch.spent_s(began_s, ended_s) < most_s
        proxy.stopped = False
    assert "DEADLINE_EXCEEDED" in results[0].failures[0]


@pytest.mark.parametrize("own_s", [None, 1e-3, 100.0])
def test_a_peer_that_answers_gives_its_pages(peers, server, own_s):
    tier, results = tier_of(peers, own_s)
    asked = wanted(server.address)
    assert [record.key for record in tier.read(asked, Stop())] == list(asked.keys)
    assert results[0].whole
