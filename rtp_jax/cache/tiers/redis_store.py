"""Values in Redis or Valkey, through its own client (extra `redis`), one try each.

A time-out is that of a connection in this client, so there is a client for each of a few time-outs,
each twice the one before.  Retries are off: whoever waits for pages would rather compute them.
"""

import threading
from typing import Any

from rtp_jax.errors import FailedPrecondition, InvalidArgument

CONNECT_S = 0.1
SHORTEST_S = 0.1


class RemoteFailed(Exception):
    """The store did not answer in time, or not in its protocol."""


class RedisStore:
    """Gets and sets values; raises nothing but `RemoteFailed` once it is made."""

    def __init__(self, url: str):
        """Read the URL; nobody is called yet.

        Raises:
          FailedPrecondition: RTPJ-4110, the client is not installed.
          InvalidArgument: RTPJ-1105, the URL cannot be read.
        """
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise FailedPrecondition(
                "RTPJ-4110 REDIS_EXTRA_MISSING: kv_remote_url needs the client of Redis, which is"
                " not installed. Run `pip install 'rtp_jax[redis]'`, or leave kv_remote_url out.",
                field="kv_remote_url",
            ) from error
        self._url, self._redis = url, redis
        self._no_retry = Retry(NoBackoff(), 0)
        # What a server may send that is not its protocol breaks the client in all of these ways.
        odd = (ValueError, LookupError, TypeError, AttributeError)
        self._failures = (redis.RedisError, OSError, *odd)
        self._lock = threading.Lock()
        self._clients: dict[float, Any] = {}  # by time-out
        try:
            self._client(SHORTEST_S)
        except ValueError as error:
            raise InvalidArgument(
                f"RTPJ-1105 KV_REMOTE_URL_INVALID: kv_remote_url cannot be read ({error}). Write"
                " redis://HOST:PORT/DB, rediss://... for TLS, or unix://PATH.",
                field="kv_remote_url",
            ) from error

    def get(self, names: list[str], timeout_s: float) -> list[bytes | None]:
        """Get values; None where there is none."""
        client = self._client(timeout_s)
        try:
            values = client.mget(names)
        except self._failures as error:
            raise self._failed(client, error) from error
        well_formed = isinstance(values, list) and len(values) == len(names)
        if not well_formed or not all(each is None or isinstance(each, bytes) for each in values):
            raise self._failed(client, ValueError("no list of values"))
        return values

    def put(self, name: str, value: bytes, timeout_s: float) -> bool:
        """Set a value unless there is one; False: the store is full."""
        client = self._client(timeout_s)
        try:
            answer = client.set(name, value, nx=True)
        except self._redis.exceptions.ResponseError as error:
            if _is_full(error):
                return False
            raise self._failed(client, error) from error
        except self._failures as error:
            raise self._failed(client, error) from error
        if answer is not True and answer is not None:  # None: there is one
            raise self._failed(client, ValueError("neither done nor there"))
        return True

    def drop(self, names: list[str], timeout_s: float) -> None:
        """Forget values."""
        client = self._client(timeout_s)
        try:
            client.unlink(*names)
        except self._failures as error:
            raise self._failed(client, error) from error

    def close(self) -> None:
        """End all connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, timeout_s: float) -> Any:
        """Return the client with the shortest time-out that is long enough."""
        allowed_s = SHORTEST_S
        while allowed_s < timeout_s:
            allowed_s *= 2
        with self._lock:
            if allowed_s not in self._clients:
                self._clients[allowed_s] = self._redis.Redis.from_url(
                    self._url,
                    socket_timeout=allowed_s,
                    socket_connect_timeout=CONNECT_S,
                    retry=self._no_retry,
                    health_check_interval=0,
                    decode_responses=False,
                    protocol=2,  # which needs no greeting
                )
            return self._clients[allowed_s]

    def _failed(self, client: Any, error: Exception) -> RemoteFailed:
        """Drop the connections: a late answer on one of them would be taken for the next."""
        client.connection_pool.disconnect()
        return RemoteFailed(type(error).__name__)


def _is_full(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or str(error).startswith("OOM")
