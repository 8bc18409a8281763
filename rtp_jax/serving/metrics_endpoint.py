"""Where do Prometheus and the probes ask?  A plain HTTP port with a thread of its own.

    /metrics   the series of `rtp_jax/metrics.py`
    /livez     200 while the engine's loop turns, or is being built: else restart the process
    /readyz    200 while requests are welcome

It answers when gRPC's loop is busy.  A router adds its status page (`status_page.py`).
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from rtp_jax.errors import FailedPrecondition

PLAIN = "text/plain; charset=utf-8"
TIMEOUT_S = 10.0
Page = Callable[[], tuple[str, str, bool]]  # text, content type, and whether all is well


@dataclass(frozen=True, slots=True)
class Probes:
    """What the endpoint asks; an empty answer means yes, any other says why not."""

    why_not_live: Callable[[], str]
    why_not_ready: Callable[[], str]


class MetricsEndpoint:
    """Serves from construction to `close`; `port` is the one it really has."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        probes: Probes,
        more: Mapping[str, Page] = MappingProxyType({}),
    ):
        class Handler(_Handler):
            pages = {  # noqa: RUF012
                "/metrics": lambda: (generate_latest(registry).decode(), CONTENT_TYPE_LATEST, True),
                "/livez": lambda: _verdict(probes.why_not_live()),
                "/readyz": lambda: _verdict(probes.why_not_ready()),
                **more,
            }

        try:
            self._server = _HttpServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise FailedPrecondition(
                f"RTPJ-5208 METRICS_ADDRESS_UNAVAILABLE: {host}:{port} cannot be listened on for"
                f" metrics ({error.__class__.__name__}). Choose another metrics_port (0: a free"
                " one).",
                field="metrics_port",
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="rtp-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


class _Handler(BaseHTTPRequestHandler):
    pages: dict[str, Page]
    timeout = TIMEOUT_S
    server_version, sys_version = "rtp_jax", ""

    def do_GET(self) -> None:
        """Answer one of the pages."""
        path = self.path.partition("?")[0]
        if path not in self.pages:
            self._answer(HTTPStatus.NOT_FOUND, "pages: " + " ".join(self.pages) + "\n", PLAIN)
            return
        text, kind, fine = self.pages[path]()
        self._answer(HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE, text, kind)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: probes ask every second."""

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _verdict(why_not: str) -> tuple[str, str, bool]:
    return (why_not or "ok") + "\n", PLAIN, not why_not
