"""The methods of the generation service: messages to requests, tokens to messages.

Each method takes a message and a `Call` and returns a message, or yields frames; errors are raised
and become statuses in `door.py`.  Until the engine is there, and while it drains, requests are
refused as UNAVAILABLE.  Read next: `prompts.py`, `sampling_messages.py`
and `frames.py`.
"""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from importlib import metadata

from rtp_jax.config import ServerConfig
from rtp_jax.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from rtp_jax.outputs import RequestOutput
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.serving.checks import (
    MAX_IDS_PER_ABORT,
    at_most,
    checked_request_id,
    checked_timeout,
    missing,
)
from rtp_jax.serving.door import Call
from rtp_jax.serving.frames import Frames
from rtp_jax.serving.info_messages import loads_message, model_info_message
from rtp_jax.serving.output_messages import response_message, score_message
from rtp_jax.serving.prompts import MAX_TRUNCATION, chat_ids, check_text, prompt_of, reuse_of
from rtp_jax.serving.sampling_messages import params_of
from rtp_jax.serving.served import Served, Tokenizer, last
from rtp_jax.serving.status import EndedEarly
from rtp_jax.wire import generation_pb2 as pb

MAX_SALT_CHARS = 256
MAX_CONTINUATIONS = 128
MAX_COMPLETIONS = 1024
MAX_NAME_CHARS = 128  # of sessions and tenants
MAX_DETOKENIZE_IDS = 1 << 20
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a generate message asks of the engine."""

    prompt: str | list[int]
    params: SamplingParams
    options: dict  # keywords of `stream_async`


class GenerationService:
    """Serves one engine, which is put into `engine` once it is ready."""

    def __init__(self, config: ServerConfig, *, routes: bool = False):
        """Start without an engine; `routes` says that it will be one made of workers."""
        self.routes = routes
        self.engine: Served | None = None
        self.draining = self.ended = False
        self.live_ids: set[str] = set()
        self._config = config
        self._started_s = time.monotonic()
        self._numbers = itertools.count()

    async def Generate(self, request: pb.GenerateRequest, call: Call) -> pb.GenerateResponse:
        """Generate and answer once."""
        engine = self.engine_for(request.model)
        asked = await self._asked(engine, request, call, OutputKind.FINAL_ONLY)
        output = await last(self.outputs(engine, asked.prompt, asked.params, asked.options))
        answer = response_message(
            output,
            with_prompt_ids=request.return_prompt_token_ids,
            num_resumed=[len(each.ids) for each in request.resume.output],
        )
        if output.error is not None:
            raise EndedEarly(output.error, answer)
        return answer

    async def GenerateStream(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncIterator[pb.GenerateFrame]:
        """Generate and yield what is new."""
        engine = self.engine_for(request.model)
        asked = await self._asked(engine, request, call, OutputKind.DELTA)
        frames = Frames(
            with_prompt_ids=request.return_prompt_token_ids,
            num_resumed=[len(each.ids) for each in request.resume.output],
        )
        outputs = self.outputs(engine, asked.prompt, asked.params, asked.options)
        async with aclosing(outputs):
            async for output in outputs:
                if output.error is not None and output.finished:
                    raise EndedEarly(output.error, frames.summary(output))
                yield frames.frame(output)

    async def Tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """Return the token ids of a text or a conversation."""
        engine = self.engine_for(request.model)
        tokenizer = tokenizer_of(engine)
        match request.WhichOneof("input"):
            case "text":
                check_text(engine, "text", request.text)
                ids = await asyncio.to_thread(tokenizer.encode, request.text)
            case "chat":
                ids = await chat_ids(engine, request.chat)
            case _:
                raise missing("input", "text, chat")
        return pb.TokenizeResponse(token_ids=ids, max_model_len=engine.info.max_model_len)

    async def Detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """Return the text of token ids."""
        engine = self.engine_for(request.model)
        tokenizer = tokenizer_of(engine)
        at_most("token_ids", request.token_ids, MAX_DETOKENIZE_IDS, what="ids")
        ids, vocab = list(request.token_ids), engine.info.vocab_size
        if wrong := [token_id for token_id in ids if token_id >= vocab]:
            raise InvalidArgument(
                f"RTPJ-5011 TOKEN_ID_UNKNOWN: token_ids has {wrong[0]}; this model has ids 0 to"
                f" {vocab - 1}. Leave it out, or check which model made it.",
                field="token_ids",
            )
        return pb.DetokenizeResponse(text=await asyncio.to_thread(tokenizer.decode, ids))

    async def Score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        """Return the log-probabilities of given continuations."""
        engine = self.engine_for(request.model)
        engine.check_generates()
        at_most("continuations", request.continuations, MAX_CONTINUATIONS, what="entries")
        prompt = prompt_of(engine, "input", request)
        continuations = [
            prompt_of(engine, f"continuations[{index}].input", each)
            for index, each in enumerate(request.continuations)
        ]
        scores = await engine.score_async(
            prompt, continuations, deadline_s=_deadline_s(request, call)
        )
        request_id = self.request_id(request.request_id, call)
        return pb.ScoreResponse(request_id=request_id, scores=map(score_message, scores))

    async def Abort(self, request: pb.AbortRequest, call: Call) -> pb.AbortResponse:
        """End requests by id."""
        at_most("request_ids", request.request_ids, MAX_IDS_PER_ABORT, what="ids")
        engine = self.engine_for("")
        engine.abort([checked_request_id(each, "request_ids") for each in request.request_ids])
        return pb.AbortResponse()

    async def GetModelInfo(
        self, request: pb.GetModelInfoRequest, call: Call
    ) -> pb.GetModelInfoResponse:
        """Say which model is served."""
        return model_info_message(self.engine_for("").info)

    async def GetServerInfo(
        self, request: pb.GetServerInfoRequest, call: Call
    ) -> pb.GetServerInfoResponse:
        """Say what this server is; answers while it warms up, too."""
        info = None if self.engine is None else self.engine.info
        return pb.GetServerInfoResponse(
            version=metadata.version("rtp_jax"),
            protocol=pb.DESCRIPTOR.package,
            platform="" if info is None else info.platform,
            epoch="" if info is None else info.epoch,
            uptime_s=time.monotonic() - self._started_s,
            draining=self.draining,
            max_message_bytes=self._config.max_message_bytes,
            max_request_s=self._config.max_request_s,
            tensor_parallel_size=0 if info is None else info.tensor_parallel_size,
        )

    async def GetLoads(self, request: pb.GetLoadsRequest, call: Call) -> pb.GetLoadsResponse:
        """Say how busy the engine is."""
        return loads_message(self.engine_for("").loads())

    async def outputs(
        self, engine: Served, prompt: str | list[int], params: SamplingParams, options: dict
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield what an engine answers; closing this gives the request up."""
        engine.check_generates()
        outputs = engine.stream_async(prompt, params, **options)
        with self._live(options["request_id"]):
            async with aclosing(outputs):
                async for output in outputs:
                    yield output

    def engine_for(self, model: str) -> Served:
        """Return the engine, or say that it is not ready or serves another model."""
        if self.engine is None:
            raise Unavailable(
                "RTPJ-5010 WARMING_UP: the model is being loaded or compiled. Wait until health"
                " says SERVING.",
                retry_after_s=RETRY_AFTER_S,
            )
        name = self.engine.info.name
        if model and model != name:
            raise NotFound(
                f"RTPJ-5012 MODEL_NOT_SERVED: model={model[:80]!r} is not here; this server has"
                f" {name!r}. Correct the name, or leave it out.",
                field="model",
            )
        return self.engine

    async def _asked(
        self, engine: Served, request: pb.GenerateRequest, call: Call, kind: OutputKind
    ) -> Asked:
        at_most("cache_salt", request.cache_salt, MAX_SALT_CHARS, what="characters")
        is_chat = request.WhichOneof("input") == "chat"
        if request.HasField("sampling"):
            params = params_of(request.sampling, output_kind=kind, chat=is_chat)
        else:
            params = replace(engine.info.default_sampling_params, output_kind=kind)
            params = replace(params, max_tokens=None) if is_chat else params
        options = {
            "request_id": self.request_id(request.request_id, call),
            "priority": request.priority,
            "deadline_s": _deadline_s(request, call),
            "cache_salt": request.cache_salt,
            "reuse": reuse_of(request.reuse) if request.HasField("reuse") else None,
        }
        if request.prefill_at:
            options["prefill_at"] = tuple(request.prefill_at)
        options |= self._more_options(engine, request)
        if is_chat:
            return Asked(await chat_ids(engine, request.chat), params, options)
        truncation = 1 if params.truncate_prompt_tokens is None else MAX_TRUNCATION
        prompt = prompt_of(engine, "input", request, truncation=truncation)
        return Asked(prompt, params, options)

    def _more_options(self, engine: Served, request: pb.GenerateRequest) -> dict:
        """Read what only some requests have."""
        options: dict[str, object] = {}
        if request.HasField("resume"):
            at_most("resume.output", request.resume.output, MAX_COMPLETIONS, what="entries")
            for each in request.resume.output:
                at_most("resume.output", each.ids, engine.info.max_model_len, what="token ids")
            options["resume"] = [list(each.ids) for each in request.resume.output]
        if request.HasField("tenant") and not self.routes:
            raise Unimplemented(
                "RTPJ-5606 TENANT_NEEDS_ROUTER: quotas of tenants are kept by a router, and this is"
                " a worker. Leave tenant out, or send the request to the router.",
                field="tenant",
            )
        if self.routes:  # a worker is where all requests of a session meet, anyway
            at_most("session", request.session, MAX_NAME_CHARS, what="characters")
            at_most("tenant", request.tenant, MAX_NAME_CHARS, what="characters")
            options |= {"session": request.session, "tenant": request.tenant}
        return options

    @contextmanager
    def _live(self, request_id: str) -> Iterator[None]:
        """Remember a request while it lives, for whoever has to end all of them."""
        mine = request_id not in self.live_ids  # else the engine is about to refuse it
        self.live_ids.add(request_id)
        try:
            yield
        finally:
            if mine:
                self.live_ids.discard(request_id)

    def request_id(self, given: str, call: Call) -> str:
        """Choose the id of a request: its own, or one that is new and starts as its call's."""
        if given:
            return checked_request_id(given, "request_id")
        return f"{call.request_id[:100]}-{next(self._numbers)}"


def _deadline_s(request: pb.GenerateRequest | pb.ScoreRequest, call: Call) -> float:
    if not request.HasField("timeout_s"):
        return call.deadline_s
    return min(call.deadline_s, time.monotonic() + checked_timeout(request.timeout_s))


def tokenizer_of(engine: Served) -> Tokenizer:
    """Return the tokenizer, or say that this server has none."""
    if engine.tokenizer is None:
        raise FailedPrecondition(
            "RTPJ-5014 TOKENIZER_ABSENT: this server was started with skip_tokenizer_init. Send"
            " token ids."
        )
    return engine.tokenizer
