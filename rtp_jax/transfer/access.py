"""Whom may a request make us ask, and how do we show who we are?

A request that names a prefill worker makes this one open a connection, so only what the operator
listed is asked: by default workers on this machine.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import grpc

from rtp_jax.errors import InvalidArgument
from rtp_jax.page_record import KvLayout
from rtp_jax.transfer.direct_take import Taking
from rtp_jax.transfer.hosts import host_of, is_loopback
from rtp_jax.transfer.peer import PeerAccess, Peers

MAX_CANDIDATES = 8
MAX_FILE_BYTES = 1 << 20
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253}):([0-9]{1,5})")


def check_addresses(addresses: Sequence[str], allowed: str | None) -> tuple[str, ...]:
    """Accept the prefill workers that a request names, best first.

    Raises:
      InvalidArgument: one is no address, there are too many, or one is not allowed.
    """
    if len(addresses) > MAX_CANDIDATES:
        raise _refused(f"has {len(addresses)} workers, at most {MAX_CANDIDATES} are asked")
    for address in addresses:
        found = ADDRESS.fullmatch(address) if isinstance(address, str) else None
        if found is None or not 0 < int(found[2]) < 1 << 16:
            raise _refused("has an entry that is not HOST:PORT")
        if not _is_allowed(address, host_of(address), allowed):
            raise _refused(
                f"names {address}, which transfer_peers={allowed or 'workers of this machine'}"
                " does not allow"
            )
    return tuple(dict.fromkeys(addresses))


def peers_of(
    layout: KvLayout,
    token_file: str | None,
    tls_ca: str | None,
    own_epoch: str,
    taking: Taking | None = None,
) -> Peers:
    """Return whom an engine may ask, with what they want to see; it never asks itself.

    Raises:
      InvalidArgument: a file cannot be used.
    """
    return Peers(layout, _access(token_file, tls_ca), own_epoch, taking)


def _access(token_file: str | None, tls_ca: str | None) -> PeerAccess:
    token = None
    if token_file is not None:
        lines = _read("transfer_token_file", token_file).decode(errors="replace").splitlines()
        token = next((line.strip() for line in lines if line.strip() and line[0] != "#"), "")
        if not token or not token.isascii() or not token.isprintable():
            raise _bad_file("transfer_token_file", token_file, "holds no token")
    if tls_ca is None:
        return PeerAccess(token=token)
    pem = _read("transfer_tls_ca", tls_ca)
    if b"-----BEGIN " not in pem:
        raise _bad_file("transfer_tls_ca", tls_ca, "has no PEM block")
    return PeerAccess(token=token, tls=grpc.ssl_channel_credentials(pem))


def _is_allowed(address: str, host: str, allowed: str | None) -> bool:
    if allowed is not None:
        entries = [entry.strip() for entry in allowed.split(",")]
        return "*" in entries or address in entries or host in entries
    return is_loopback(host)


def _read(field: str, path: str) -> bytes:
    try:
        if Path(path).stat().st_size > MAX_FILE_BYTES:
            raise _bad_file(field, path, f"has more than {MAX_FILE_BYTES} bytes")
        return Path(path).read_bytes()
    except OSError as error:
        raise _bad_file(field, path, f"cannot be read ({type(error).__name__})") from error


def _bad_file(field: str, path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-4309 TRANSFER_FILE_INVALID: {field}={path} {reason}. Give the file that the other"
        " workers were started with.",
        field=field,
    )


def _refused(reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-4310 PREFILL_AT_INVALID: prefill_at {reason}. Name prefill workers as HOST:PORT,"
        " best first, and list them in transfer_peers.",
        field="prefill_at",
    )
