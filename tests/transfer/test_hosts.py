"""Where addresses lead, without asking anybody."""

import pytest

from rtp_jax.transfer import hosts
from rtp_jax.transfer.hosts import address_for_others, can_connect, host_of, is_loopback


@pytest.mark.parametrize("host", ["127.0.0.5", "::1", "localhost"])
def test_what_leads_to_this_machine_alone(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.3", "fd00::3", "0.0.0.0", "::", "node-1", ""])
def test_what_may_lead_elsewhere(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "pair", ["127.0.0.1 127.0.0.2", "::1 ::1", "10.0.0.3 10.1.0.4", "fd00::3 fd00::4"]
)
def test_what_can_be_connected(pair):
    assert can_connect(*pair.split())


@pytest.mark.parametrize(
    "pair",
    [
        "127.0.0.1 10.0.0.3",
        "::1 fd00::3",
        "127.0.0.1 ::1",
        "10.0.0.3 fd00::3",
        "10.0.0.3 0.0.0.0",
        "127.0.0.1 localhost",
        "10.0.0.3 10.0.0.4:1",
        "fe80::3 fe80::4",
    ],
)
def test_what_cannot(pair):
    here, there = pair.split()
    assert not can_connect(here, there)
    assert not can_connect(there, here)
    assert not can_connect(here, "")


def test_the_host_of_an_address():
    assert host_of("10.0.0.3:50061") == "10.0.0.3"
    assert host_of("[::1]:50061") == "::1"


def test_others_are_never_told_that_it_is_everywhere(monkeypatch):
    assert address_for_others("127.0.0.2") == "127.0.0.2"
    monkeypatch.setitem(hosts.ELSEWHERE, 4, "127.0.0.2")
    assert address_for_others("0.0.0.0") == "127.0.0.1"  # from which this machine goes there
    monkeypatch.setitem(hosts.ELSEWHERE, 4, "255.255.255.255")
    with pytest.raises(OSError, match=r"."):
        address_for_others("0.0.0.0")
    for host in ("node-1", "fe80::1", "fe80::1%eth0"):
        with pytest.raises(ValueError, match=host):
            address_for_others(host)
