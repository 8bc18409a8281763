"""The gRPC server, put together: options, address, TLS, tokens, services.

Read next: `door.py` for what happens around a call, `worker.py` for how it starts and ends.
"""

import contextlib
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rtp_jax.config import ServerConfig
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.metrics import Metrics
from rtp_jax.serving.auth import BearerAuth, read_tokens
from rtp_jax.serving.door import SERVICE, Door, Service
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.health import Health
from rtp_jax.serving.served import transfer_of
from rtp_jax.transfer.hosts import is_loopback
from rtp_jax.transfer.kv_service import FRAME_BYTES, KvService
from rtp_jax.wire import kv_pb2

KV_SERVICE = kv_pb2.DESCRIPTOR.services_by_name["KvTransfer"]
MAX_PEM_BYTES = 1 << 20
MAX_CONCURRENT_RPCS = 10_000
MAX_METADATA_BYTES = 16 << 10
# grpc ignores options that it does not know, so a test pings and waits to see that these work.
KEEPALIVE: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),  # clients may ping during a long silence
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_time_ms", 60_000),  # our own pings, which find clients that vanished
    ("grpc.keepalive_timeout_ms", 20_000),
)


class Server:
    """A bound gRPC server; `port` is the one it really has."""

    def __init__(
        self,
        config: ServerConfig,
        service: GenerationService,
        metrics: Metrics,
        more: Sequence[tuple[Service, ServiceDescriptor]] = (),
    ):
        """Bind; nothing is answered before `start`.  `more` are services beside generation.

        Raises:
          InvalidArgument: a file of TLS or of tokens is unusable, or the address needs TLS.
          FailedPrecondition: somebody else has the address.
        """
        tokens = read_tokens(config.auth_token_file) if config.auth_token_file else ()
        self.health = Health()
        self._grpc = aio.server(
            interceptors=[BearerAuth(tokens)] if tokens else [],
            options=options(config),
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        served: list[tuple[Service, ServiceDescriptor]] = [(service, SERVICE), *more]
        if not service.routes:
            pages = KvService(
                lambda: transfer_of(service.engine_for("")),
                min(FRAME_BYTES, config.max_message_bytes // 2),
            )
            served.append((pages, KV_SERVICE))
        doors = [
            Door(each, metrics=metrics, max_request_s=config.max_request_s, described=described)
            for each, described in served
        ]
        self._grpc.add_generic_rpc_handlers([door.handler() for door in doors])
        health_pb2_grpc.add_HealthServicer_to_server(self.health.servicer, self._grpc)
        if config.reflection:
            described = [each for _, each in served]
            reflection.enable_server_reflection(_services(described), self._grpc)
        self.port = _bind(self._grpc, config)

    async def start(self) -> None:
        """Answer calls from now on."""
        await self.health.start()
        await self._grpc.start()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls; give those that run some seconds, then cancel them."""
        await self._grpc.stop(grace_s)


def options(config: ServerConfig) -> tuple[tuple[str, int], ...]:
    """List grpc's options; see `grpc_types.h` for what they mean."""
    return (
        ("grpc.so_reuseport", 0),  # else a second server on the port is no error
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_metadata_size", MAX_METADATA_BYTES),
        # Calls that Python has not seen yet: by default grpc cuts some beyond 1000, without a word.
        ("grpc.server.max_pending_requests", MAX_CONCURRENT_RPCS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_CONCURRENT_RPCS),
        *KEEPALIVE,
    )


def _services(described: Sequence[ServiceDescriptor]) -> Sequence[str]:
    health = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    return (*(each.full_name for each in described), health, reflection.SERVICE_NAME)


def _bind(server: aio.Server, config: ServerConfig) -> int:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    credentials = _credentials(config)
    check_reach(config)
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise FailedPrecondition(
            f"RTPJ-5205 ADDRESS_UNAVAILABLE: {address} cannot be listened on: it is in use, not"
            " ours, or no address of this machine. Choose another port (0: a free one) or host.",
            field="port",
        ) from error


def check_reach(config: ServerConfig) -> None:
    """Refuse to listen beyond this machine without TLS, unless somebody insists."""
    if config.tls_cert is None and not config.insecure and not is_loopback(config.host):
        raise InvalidArgument(
            f"RTPJ-5204 ADDRESS_NEEDS_TLS: host={config.host} can be reached from other machines"
            " and there is no TLS. Set tls_cert and tls_key, or insecure=true, or host=127.0.0.1.",
            field="host",
        )


def _credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Read the files of TLS, again for each connection when they have changed."""
    if config.tls_cert is None and config.tls_key is None and config.tls_client_ca is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise InvalidArgument(
            "RTPJ-5206 TLS_INCOMPLETE: TLS needs tls_cert and tls_key, both; tls_client_ca adds"
            " mTLS to them. Set the one that is missing.",
            field="tls_key" if config.tls_cert else "tls_cert",
        )
    paths = [("tls_cert", config.tls_cert), ("tls_key", config.tls_key)]
    if config.tls_client_ca is not None:
        paths.append(("tls_client_ca", config.tls_client_ca))
    files = [_pem(field, path) for field, path in paths]
    stamps = [Path(path).stat().st_mtime_ns for _, path in paths]
    current = _configuration(files)

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """Return new certificates, or None to keep those we have; called for each handshake."""
        try:
            now = [Path(path).stat().st_mtime_ns for _, path in paths]
            if now == stamps:
                return None
            fresh = _configuration([_pem(field, path) for field, path in paths])
        except (OSError, InvalidArgument):
            return None  # half-way through a renewal
        stamps[:] = now
        return fresh

    return grpc.dynamic_ssl_server_credentials(
        current,
        renewed,  # pyright: ignore[reportArgumentType]  # None is allowed: keep the current one
        require_client_authentication=config.tls_client_ca is not None,
    )


def _configuration(files: Sequence[bytes]) -> grpc.ServerCertificateConfiguration:
    cert, key, *client_ca = files
    return grpc.ssl_server_certificate_configuration(
        [(key, cert)], root_certificates=client_ca[0] if client_ca else None
    )


def http_socket(config: ServerConfig) -> socket.socket:
    """Bind and listen where the HTTP door is to be."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    both = config.host == "::" and socket.has_dualstack_ipv6()
    try:
        address = (config.host, config.http_port or 0)
        return socket.create_server(address, family=family, dualstack_ipv6=both)
    except OSError as error:
        raise FailedPrecondition(
            f"RTPJ-5401 HTTP_ADDRESS_UNAVAILABLE: {config.host}:{config.http_port} cannot be"
            f" listened on for HTTP ({error.__class__.__name__}). Choose another http_port (0: a"
            " free one).",
            field="http_port",
        ) from error


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """Return what the HTTP door needs for the same TLS, or None; renewed files are read again.

    Raises:
      InvalidArgument: the files do not make a certificate and its key.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    paths = [path for path in (config.tls_cert, config.tls_key, config.tls_client_ca) if path]

    def made() -> tuple[list[int], ssl.SSLContext]:
        stamps = [Path(path).stat().st_mtime_ns for path in paths]
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=config.tls_client_ca)
        context.load_cert_chain(paths[0], paths[1])
        if config.tls_client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return stamps, context

    try:
        stamps, first = made()
    except OSError as error:  # of which ssl.SSLError is one
        raise InvalidArgument(
            f"RTPJ-5409 TLS_PAIR_INVALID: tls_cert={config.tls_cert} and tls_key={config.tls_key}"
            f" do not work together ({error.__class__.__name__}). Give a certificate and its key.",
            field="tls_cert",
        ) from error
    newest = [stamps, first]

    def renew(connection: ssl.SSLObject, _name: object, _context: ssl.SSLContext) -> None:
        """Put the newest certificates into a handshake."""
        with contextlib.suppress(OSError):  # half-way through a renewal
            if newest[0] != [Path(path).stat().st_mtime_ns for path in paths]:
                newest[:] = made()
        connection.context = newest[1]

    first.sni_callback = renew
    return first


def _pem(field: str, path: str) -> bytes:
    """Read a PEM file; what is in it is judged by grpc."""
    try:
        if Path(path).stat().st_size > MAX_PEM_BYTES:
            raise _bad_pem(field, path, f"has more than {MAX_PEM_BYTES} bytes")
        data = Path(path).read_bytes()
    except OSError as error:
        raise _bad_pem(field, path, f"cannot be read ({error.__class__.__name__})") from error
    if b"-----BEGIN " not in data:
        raise _bad_pem(field, path, "has no PEM block")
    return data


def _bad_pem(field: str, path: str, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5207 TLS_FILE_INVALID: {field}={path} {reason}. Give a PEM file.", field=field
    )
