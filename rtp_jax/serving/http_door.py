"""The OpenAI-compatible HTTP door: the same engine, tokens, drain and errors as the gRPC door.

A client that goes away takes its requests with it; one that reads slowly gets its tokens in larger
pieces and stalls nobody.  `docs/http.md` lists paths and fields; aiohttp comes with the extra
`http`.  Read next: `http_requests.py`, `http_replies.py`.
"""

import asyncio
import logging
import time
import uuid
from contextlib import aclosing
from importlib import metadata
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rtp_jax import errors
from rtp_jax.config import ServerConfig
from rtp_jax.metrics import Metrics
from rtp_jax.serving.auth import BearerAuth, read_tokens
from rtp_jax.serving.checks import bad_body, checked_request_id, parse_json
from rtp_jax.serving.door import Call, fault, log_refusal
from rtp_jax.serving.generation_service import GenerationService
from rtp_jax.serving.health import Health
from rtp_jax.serving.http_replies import DONE, Reply, event, spelled
from rtp_jax.serving.http_requests import Asked, chat_asked, completion_asked, wrong
from rtp_jax.serving.served import Served, merged
from rtp_jax.serving.server import check_reach, http_socket, tls_context
from rtp_jax.serving.status import code_of, http_answer

logger = logging.getLogger("rtp_jax.requests")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MODELS, HEALTH, METRICS, VERSION = "/v1/models", "/health", "/metrics", "/version"
METHOD_OF = {COMPLETIONS: "POST", CHAT: "POST"}
METHOD_OF |= dict.fromkeys((MODELS, HEALTH, METRICS, VERSION), "GET")
JSON = "application/json"
EVENTS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
READ_TIMEOUT_S = 60.0  # for a body to arrive
KEEPALIVE_S = 75.0  # for an idle connection
WRITE_GRACE_S = 10.0  # after the deadline, for a slow reader to take what is left


class HttpDoor:
    """A bound HTTP server; `port` is the one it really has."""

    def __init__(
        self, config: ServerConfig, service: GenerationService, health: Health, metrics: Metrics
    ):
        """Bind; nothing is answered before `start`.

        Raises:
          InvalidArgument: a file of TLS or of tokens is unusable, or the address needs TLS.
          FailedPrecondition: somebody else has the address, or aiohttp is not installed.
        """
        try:
            from aiohttp import web
        except ImportError as error:
            raise errors.FailedPrecondition(
                "RTPJ-5402 HTTP_EXTRA_MISSING: http_port needs aiohttp, which is not installed. Run"
                " `pip install 'rtp_jax[http]'`, or leave http_port out.",
                field="http_port",
            ) from error
        self._web: Any = web
        self._runner: Any = None
        self._config, self._service, self._health = config, service, health
        self._metrics = metrics
        tokens = read_tokens(config.auth_token_file) if config.auth_token_file else ()
        self._auth = BearerAuth(tokens) if tokens else None
        check_reach(config)
        self._tls, self._created_s = tls_context(config), int(time.time())
        self._socket = http_socket(config)
        self.port: int = self._socket.getsockname()[1]

    async def start(self, *, grace_s: float) -> None:
        """Answer from now on; `grace_s` is what `stop` gives to calls that run."""
        application = self._web.Application(client_max_size=self._config.http_max_body_bytes)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = self._web.AppRunner(
            application,
            access_log=None,
            auto_decompress=False,  # a few bytes could become very many
            handler_cancellation=True,  # when the client goes away
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=grace_s,
        )
        await self._runner.setup()
        await self._web.SockSite(self._runner, self._socket, ssl_context=self._tls).start()

    async def stop(self) -> None:
        """Take no more calls; give those that run some seconds, then cancel them."""
        if self._runner is not None:
            await self._runner.cleanup()
        self._socket.close()

    async def _handle(self, request: Any) -> Any:
        async with _Wall(self._web, request, self._metrics) as wall:
            given = {"authorization": request.headers.get("Authorization", "")}
            if self._auth and wall.path != HEALTH and (error := self._auth.obstacle(given)):
                raise error
            call = wall.open(self._config.max_request_s)
            if METHOD_OF.get(wall.path) != ("GET" if request.method == "HEAD" else request.method):
                known = ", ".join(f"{method} {path}" for path, method in METHOD_OF.items())
                raise errors.NotFound(
                    f"RTPJ-5403 PATH_UNKNOWN: {request.method} {request.path[:80]} is not here."
                    f" Use one of: {known}."
                )
            if wall.path not in (COMPLETIONS, CHAT):
                await self._look(wall, request.path)
                return wall.response
            body = parse_json(await self._body(request))
            if not isinstance(model := body.get("model", ""), str):
                raise wrong("model", model, "a name, or left out")
            engine = self._service.engine_for(model)
            whole = completion_asked(engine, body) if wall.path == COMPLETIONS else None
            await self._generate(engine, whole or await chat_asked(engine, body), call, wall)
        return wall.response

    async def _look(self, wall: "_Wall", path: str) -> None:
        if wall.path == HEALTH and not self._health.serving:
            raise errors.Unavailable(
                f"RTPJ-5410 NOT_SERVING: {self._health.reason}. Wait, or try another worker."
            )
        if wall.path == METRICS:
            page = await asyncio.to_thread(generate_latest, self._metrics.registry)
            wall.answer(200, page, {"Content-Type": CONTENT_TYPE_LATEST})
        elif wall.path == MODELS:
            name = path.removeprefix(MODELS).removeprefix("/")
            info = self._service.engine_for(name).info
            model = {"id": info.name, "object": "model", "created": self._created_s}
            model |= {"owned_by": "rtp_jax", "max_model_len": info.max_model_len}
            wall.answer(200, spelled(model if name else {"object": "list", "data": [model]}))
        else:
            wall.answer(200, spelled({"version": metadata.version("rtp_jax")}))

    async def _body(self, request: Any) -> bytes:
        if request.content_type != JSON:  # which no web page can send here unasked
            raise bad_body(f"is {request.content_type[:80]}")
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await request.read()
        except self._web.HTTPRequestEntityTooLarge:
            most = self._config.http_max_body_bytes
            raise errors.InvalidArgument(
                f"RTPJ-5404 BODY_TOO_LARGE: the body has more than {most} bytes. Send less, or"
                " raise http_max_body_bytes."
            ) from None
        except self._web.RequestPayloadError:
            raise bad_body("did not arrive whole") from None
        except TimeoutError:
            raise errors.DeadlineExceeded(
                f"RTPJ-5408 BODY_TOO_SLOW: the body did not arrive within {READ_TIMEOUT_S:g} s."
                " Send it again."
            ) from None

    async def _generate(self, engine: Served, asked: Asked, call: Call, wall: "_Wall") -> None:
        form = asked.form
        head = {"id": f"{'chatcmpl' if form.chat else 'cmpl'}-{call.request_id}"}
        head |= {"object": form.kind, "created": int(time.time()), "model": engine.info.name}
        decode = engine.tokenizer.decode if engine.tokenizer else lambda ids: ""
        reply = Reply(asked, head, decode)
        outputs = merged([self._outputs(engine, asked, each, call) for each in asked.prompts])
        left_s = call.deadline_s + WRITE_GRACE_S - time.monotonic()
        async with asyncio.timeout(left_s), aclosing(outputs):
            async for number, output in outputs:
                if output.error is not None and output.finished:
                    wall.logged = True  # by the engine
                    raise output.error
                await wall.write(reply.take(number, output))
            if form.stream:
                await wall.write(reply.end())
            else:
                wall.answer(200, reply.whole())

    def _outputs(self, engine: Served, asked: Asked, prompt: str | list[int], call: Call):
        options = {**asked.options, "deadline_s": call.deadline_s}
        options["request_id"] = self._service.request_id("", call)
        return self._service.outputs(engine, prompt, asked.params, options)


class _Wall:
    """Stands around one call: whatever leaves it is an answer, and is counted."""

    def __init__(self, web: Any, request: Any, metrics: Metrics):
        self._web, self._request, self._metrics = web, request, metrics
        self.path: str = MODELS if request.path.startswith(MODELS + "/") else request.path
        self.response: Any = None
        self.logged = False
        self._stream: Any = None  # once something of it has been sent
        self._headers = {"Server": "rtp_jax", "X-Request-Id": uuid.uuid4().hex}

    def open(self, max_request_s: float) -> Call:
        """Read what came beside the body."""
        if given := self._request.headers.get("X-Request-Id", ""):
            self._headers["X-Request-Id"] = checked_request_id(given, "x-request-id")
        left_s, given = max_request_s, self._request.headers.get("X-Request-Timeout-Ms")
        if given is not None:
            if not given.isdecimal() or len(given) > 15 or int(given) == 0:
                raise wrong("x-request-timeout-ms", given, "a whole number > 0")
            left_s = min(left_s, int(given) / 1000)
        return Call(self._headers["X-Request-Id"], time.monotonic() + left_s)

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer at once."""
        headers = {"Content-Type": JSON, **self._headers, **(headers or {})}
        self.response = self._web.Response(status=code, body=body, headers=headers)

    async def write(self, events: bytes) -> None:
        """Send events, after the headers."""
        if events and self._stream is None:
            self._stream = self.response = self._web.StreamResponse(headers=self._headers | EVENTS)
            await self._stream.prepare(self._request)
        if events:
            await self._stream.write(events)

    async def __aenter__(self) -> "_Wall":
        return self

    async def __aexit__(self, _type: object, error: BaseException | None, _trace: object) -> bool:
        if error is None:
            self._count("OK")
        elif isinstance(error, asyncio.CancelledError | ConnectionError):  # the client is gone
            self._count("CANCELLED")
        elif isinstance(error, errors.RtpError):
            await self._refuse(error)
            return True
        elif isinstance(error, TimeoutError):  # the client does not read what it asked for
            self._count("DEADLINE_EXCEEDED")
            self._request.transport.abort()
        elif isinstance(error, Exception):
            logger.exception("%s failed", self.path, exc_info=error)
            self.logged = True
            await self._refuse(fault(self.path))
            return True
        return False

    async def _refuse(self, error: errors.RtpError) -> None:
        self._count(code_of(error).name)
        if not self.logged:
            log_refusal(self.path[:80], self._headers["X-Request-Id"], error)
        code, headers, body = http_answer(error)
        if self._stream is not None:
            await self._stream.write(event(body) + DONE)
            return
        self.answer(code, spelled(body), headers)

    def _count(self, code: str) -> None:
        known = self.path if self.path in METHOD_OF else "unknown"
        self._metrics.on_rpc(f"http {known}", code)
