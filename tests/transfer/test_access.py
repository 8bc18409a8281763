"""Whom a request may make a worker ask, and what it shows them."""

import pytest

from rtp_jax.errors import InvalidArgument
from rtp_jax.transfer.access import check_addresses, peers_of
from tests.transfer.served import LAYOUT


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("127.0.0.1:50051", None),
        ("localhost:1", None),
        ("[::1]:65535", None),
        ("10.0.0.7:50051", "10.0.0.7"),
        ("10.0.0.7:50051", "node-1, 10.0.0.7:50051"),
        ("node-1.example:50051", "*"),
    ],
)
def test_a_worker_that_may_be_asked(address, allowed):
    assert check_addresses((address, address), allowed) == (address,)


@pytest.mark.parametrize(
    ("addresses", "allowed"),
    [
        (["10.0.0.7:50051"], None),
        (["node-1:50051"], None),
        (["10.0.0.7:50052"], "10.0.0.7:50051"),
        (["127.0.0.1:50051"], "10.0.0.7"),
        (["unix:/tmp/socket"], "*"),
        (["127.0.0.1"], "*"),
        (["127.0.0.1:0"], "*"),
        (["127.0.0.1:65536"], "*"),
        (["dns:///x:1"], "*"),
        ([7], "*"),
        (["127.0.0.1:1"] * 9, "*"),
    ],
)
def test_a_worker_that_may_not(addresses, allowed):
    with pytest.raises(InvalidArgument, match="RTPJ-4310 PREFILL_AT_INVALID") as refused:
        check_addresses(addresses, allowed)
    assert refused.value.field == "prefill_at"


def test_a_token_is_shown(tmp_path):
    (tmp_path / "tokens").write_text("# ours\n\nsecret-token\nanother\n")
    peers = peers_of(LAYOUT, str(tmp_path / "tokens"), None, "e-0")
    (peer,) = peers.at(["127.0.0.1:1"])
    assert peer.metadata == (("authorization", "Bearer secret-token"),)
    peers.close()


@pytest.mark.parametrize("text", ["", "# nothing\n", "caf\u00e9-token\n"])
@pytest.mark.parametrize("which", ["token", "ca", "neither is there"])
def test_a_file_that_is_of_no_use_is_refused(tmp_path, which, text):
    path = tmp_path / "file"
    if which != "neither is there":
        path.write_text(text)
    files = (None, str(path)) if which == "ca" else (str(path), None)
    with pytest.raises(InvalidArgument, match="RTPJ-4309 TRANSFER_FILE_INVALID"):
        peers_of(LAYOUT, *files, "e-0")
