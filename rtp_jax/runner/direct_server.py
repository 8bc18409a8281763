"""Bytes between processes by jax's own transfer server, in arrays of the host.

The arrays are of the CPU, also where the model runs on a GPU: their digests are computed on the
host on both sides, so there the bytes are anyway; and what gets stuck holds host memory and no
device.  No program reads them, so nothing is compiled, whatever their size.

What the transfer server does not do, measured on both jax lines that we support: it does not report
a peer that was dead before it connected, one that has stopped, or an array that does not exist; it
forgets arrays whose time is over only when it is given another one; and a reader that dies while it
is sent an array may keep it from sending any other.  It asks nobody who he is,
and a message that it does not understand ends the process.  Read next: `transfer/direct.py`.
"""

import contextlib
import datetime
import logging
import secrets
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rtp_jax.errors import FailedPrecondition
from rtp_jax.kernels import compat
from rtp_jax.late_imports import late
from rtp_jax.transfer.direct import DirectFailed, Payload
from rtp_jax.transfer.hosts import address_for_others
from rtp_jax.weights.convert import aligned

logger = logging.getLogger(__name__)
servers = late("jax.experimental.transfer")
LAYOUT = 1  # of the bytes in an array: whole pages, one after the other
NUM_COPIES, COPY_BYTES = 4, 16 << 20  # what the server copies at once


class JaxEnd:
    """The transfer server of this process's host memory."""

    def __init__(self, host: str):
        """Listen on a free port of an address of this machine.

        For 0.0.0.0 or :: that is the address on its way to others.  The server tells those who
        connect where it listens, so it must not listen at an address that is another one there.

        Raises:
          FailedPrecondition: this jax cannot do it, or the address is not ours.
        """
        self.host = _own_address(host)
        self._spelled = _spelled(self.host, 0)
        try:
            self._device = jax.devices("cpu")[0]
            self._server: Any = self._started()
        except (RuntimeError, ImportError, AttributeError) as error:
            reason = f"of jax {jax.__version__} and kv_transport_host={host}: {error}"
            raise unavailable(reason) from error
        self._before: Any = None  # the server that was renewed last
        major, minor, *_ = jax.__version_info__
        self.protocol = f"jax {major}.{minor} pages {LAYOUT}"

    def _started(self) -> Any:
        """Start a server on a free port."""
        return servers.start_transfer_server(
            self._device.client,
            self._spelled,
            [self._spelled],
            max_num_parallel_copies=NUM_COPIES,
            transfer_size=COPY_BYTES,
        )

    def give(self, array_id: int, payloads: Sequence[Payload], keep_s: float) -> int:
        """Hold bytes until they are pulled, or a sweep finds their time over; return the port.

        Raises:
          DirectFailed: they cannot be held.
        """
        server, num_bytes, at = self._server, sum(map(len, payloads)), 0
        if server is None:
            raise DirectFailed("this end is closed")
        try:
            whole = aligned((num_bytes,), np.dtype(np.uint8))
            for payload in payloads:
                whole[at : at + len(payload)] = np.frombuffer(payload, np.uint8)
                at += len(payload)
            array = jax.device_put(whole, self._device)
            server.await_pull(array_id, [array], timeout=_in(keep_s))
            return int(server.address().rpartition(":")[2])
        except (RuntimeError, MemoryError) as error:
            raise DirectFailed(f"{num_bytes} bytes cannot be held: {error}") from error

    def sweep(self) -> None:
        """Drop what was given and whose time is over: which a server does when given more."""
        for server in (self._server, self._before):
            if server is not None:
                with contextlib.suppress(RuntimeError, MemoryError):  # then the next one does
                    nothing = jax.device_put(np.zeros(1, np.uint8), self._device)
                    server.await_pull(secrets.randbits(63), [nothing], timeout=_in(-1.0))

    def renew(self) -> None:
        """Give by a new server from now on; the one before lives until the next renewal."""
        try:
            self._before, self._server = self._server, self._started()
        except (RuntimeError, MemoryError, OSError) as error:  # the one there is may do
            logger.warning("jax's transfer server cannot be started again: %s", error)

    def connect(self, host: str, port: int) -> "JaxLink":
        """Make a link; whether anybody is there shows when it is used.

        Raises:
          DirectFailed: there is no such address, or this end is closed.
        """
        server = self._server
        if server is None:
            raise DirectFailed("this end is closed")
        try:
            return JaxLink(server.connect(_spelled(host, port)), self._device)
        except RuntimeError as error:
            raise DirectFailed(f"no link to {host}, port {port}: {error}") from error

    def close(self) -> None:
        """Give up the server, and with it what it still holds; links live on."""
        self._server = self._before = None


class JaxLink:
    """A connection to another transfer server."""

    def __init__(self, connection: Any, device: Any):
        self._connection = connection
        self._sharding = jax.sharding.SingleDeviceSharding(device)

    def pull(self, array_id: int, num_bytes: int, timeout_s: float) -> memoryview:
        """Wait for bytes, for ever if the peer has stopped.

        Raises:
          DirectFailed: they will not come.
        """
        spec = jax.ShapeDtypeStruct((num_bytes,), np.uint8, sharding=self._sharding)
        try:
            (array,) = self._connection.pull(array_id, [spec], timeout=_in(timeout_s))
            return memoryview(np.asarray(array.block_until_ready()))
        except RuntimeError as error:
            raise DirectFailed(str(error)) from error

    def end(self) -> None:
        """Make what still waits fail, where jax has a way to."""
        compat.end_transfers(self._connection)


def unavailable(reason: str) -> FailedPrecondition:
    """Make the error of an engine that cannot have the direct transport."""
    return FailedPrecondition(
        f"RTPJ-4314 KV_TRANSPORT_UNAVAILABLE: kv_transport=jax cannot be had: {reason}. Repair"
        " that, or leave kv_transport out: pages go by gRPC.",
        field="kv_transport",
    )


def _own_address(host: str) -> str:
    try:
        return address_for_others(host)
    except ValueError as error:
        reason = f"kv_transport_host={host} is not the number of one address"
        raise unavailable(reason) from error
    except OSError as error:
        reason = f"kv_transport_host={host}, and this machine has no way to others ({error})"
        raise unavailable(f"{reason}: name one of its addresses") from error


def _spelled(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _in(seconds: float) -> datetime.datetime:
    """Return a time as jax wants it: of this machine's clock and zone."""
    return datetime.datetime.now() + datetime.timedelta(seconds=seconds)
