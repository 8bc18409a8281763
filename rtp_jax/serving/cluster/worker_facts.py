"""Who is a worker that has just begun to serve?  It is asked once in each life, in a thread.

What is published of it, so that a router uses this life and no other: epoch and KV layout.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import grpc

from rtp_jax.errors import RtpError, Unavailable
from rtp_jax.serving.client_messages import CHANNEL_OPTIONS, Tls, call_metadata
from rtp_jax.serving.status import error_of
from rtp_jax.wire import router_pb2 as pb
from rtp_jax.wire.router_pb2_grpc import WorkerStateStub

TIMEOUT_S, AGAIN_S = 5.0, 0.5
NUM_THREADS = 8


@dataclass(frozen=True, slots=True)
class Facts:
    """What a life of a worker is known by."""

    epoch: str
    layout: str = ""  # fingerprint of its KV pages in hex; empty: it exchanges none


class Asking:
    """Asks workers without holding up the one who wants to know."""

    def __init__(self, ask: Callable[[str], Facts]):
        self._ask = ask
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="rtp-facts")
        self._asked: dict[str, tuple[Future[Facts], float]] = {}
        self._errors: dict[str, str] = {}  # what each life answered instead, last

    def facts_of(self, life: str, address: str, now_s: float) -> Facts | None:
        """Return what a worker says in this life, or None: no answer yet; come again."""
        future, asked_s = self._asked.get(life, (None, 0.0))
        if future is None:
            self._asked[life] = self._threads.submit(self._ask, address), now_s
        elif future.done():
            error = future.exception()
            if error is None:
                self._errors.pop(life, None)
                return self._asked.pop(life)[0].result()
            if not isinstance(error, RtpError):
                raise error
            self._errors[life] = str(error)
            if now_s - asked_s > AGAIN_S:
                del self._asked[life]
        return None

    def error_of(self, life: str) -> str:
        """Say why a life has not said who it is, as far as known."""
        return self._errors.get(life, "")

    def forget(self, life: str) -> None:
        """Ask a life no more; it has ended."""
        self._asked.pop(life, None)
        self._errors.pop(life, None)

    def close(self) -> None:
        """Ask no more."""
        self._threads.shutdown(cancel_futures=True)


def ask_worker(address: str, *, token: str | None, tls: Tls | None) -> Facts:
    """Ask a worker who it is.

    Raises:
      RtpError: it does not say.
    """
    if tls is None:
        channel = grpc.insecure_channel(address, CHANNEL_OPTIONS)
    else:
        channel = grpc.secure_channel(address, tls.credentials(), CHANNEL_OPTIONS)
    with channel:
        reports = WorkerStateStub(channel).Watch(
            pb.WatchRequest(), timeout=TIMEOUT_S, metadata=call_metadata(token)
        )
        try:
            said = (each.facts for each in reports if each.WhichOneof("report") == "facts")
            facts = next(said, None)
        except grpc.RpcError as error:
            raise error_of(error) from error
        finally:
            reports.cancel()
    if facts is None:
        raise Unavailable(f"RTPJ-5101 SERVER_UNREACHABLE: {address} ended its reports. Retry.")
    return Facts(facts.epoch, facts.layout.hex())
