"""An engine made of workers: what the doors of a router serve.

It has the methods of an engine (`served.py`), so both doors work before it as before one, and
computes nothing: prompts are tokenized here, `router/` chooses the worker, tokens come back from
it, and a request whose worker is lost goes on at another with the tokens that were sent.
Read next: `journey.py`, `attempts.py`, `worker_link.py`.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rtp_jax.cache.page_identity import PageChain, PageIdentity
from rtp_jax.engine.early_aborts import EarlyAborts
from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.engine.requests import Prompt, parse_prompt
from rtp_jax.errors import AlreadyExists, Cancelled, Kind, RtpError, Unavailable
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.request import Request, Reuse
from rtp_jax.router.facts import Ask, PageHashing
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.backlog import Backlog
from rtp_jax.serving.attempts import Attempts
from rtp_jax.serving.journey import Journey
from rtp_jax.serving.route_config import RouteConfig
from rtp_jax.serving.workers import Workers
from rtp_jax.text import chat
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer

logger = logging.getLogger("rtp_jax.requests")
FAILURES = {Kind.UNAVAILABLE, Kind.RESOURCE_EXHAUSTED, Kind.DEADLINE_EXCEEDED, Kind.INTERNAL}
MAX_CHARS_PER_TOKEN = 64
LONG_TEXT_CHARS = 2000  # longer ones are tokenized off the loop
RETRY_AFTER_S = 1.0


class RoutedEngine:
    """Serves requests with the engines of others; made and used on one asyncio loop."""

    def __init__(self, folder: Path, config: RouteConfig, workers: Workers, info: ModelInfo):
        self.tokenizer: Tokenizer = load_tokenizer(folder)
        self.info = info
        self.alive = True
        self.watched = self.transfer = None  # its workers have that
        self.num_offers = 0
        self.workers = workers
        self.num_requests = self.num_failed = 0
        self.journeys: dict[str, Journey] = {}
        self._attempts = Attempts(workers, config)
        self._templates = chat.load_chat_templates(folder)
        self._draining = False
        self._aborted = EarlyAborts()
        self._numbers = itertools.count()
        self._prefix = secrets.token_hex(6)
        self._tasks: set[asyncio.Task] = set()

    async def stream_async(
        self,
        prompt: object,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        deadline_s: float | None = None,
        cache_salt: str = "",
        prefill_at: Sequence[str] = (),
        reuse: Reuse | None = None,
        resume: Sequence[Sequence[int]] = (),
        session: str = "",
        tenant: str = "",
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the outputs of one request; closing the generator ends it at its worker, too.

        Args as for `Engine.stream_async`, and:
          session: requests of one like to meet the same worker.
          tenant: whose quota counts.
        """
        params = params or self.info.default_sampling_params
        name = request_id or f"{self._prefix}-{next(self._numbers)}"
        parsed = parse_prompt(prompt)
        ids = await self._prompt_ids(parsed, params)
        request = Request(
            id=name,
            prompt_token_ids=ids,
            params=params,
            prompt=parsed.text,
            seed=seed_of(name) if params.seed is None else params.seed,
            max_tokens=params.max_tokens or max(self.info.max_model_len - len(ids), 1),
            priority=priority,
            arrival_s=time.monotonic(),
            deadline_s=deadline_s,
            cache_salt=cache_salt or parsed.cache_salt,
            reuse=reuse or parsed.reuse,
            prefill_at=tuple(prefill_at),
            resumed=tuple(map(tuple, resume)),
        )
        journey = Journey(request)
        with self._live(journey):
            outputs = self._attempts.outputs(journey, lambda: self._ask(journey, session, tenant))
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    if output.finished:  # whoever gets an error in it asks for no more
                        self._note_end(journey, output.error)
                    yield output

    async def score_async(
        self, prompt: object, continuations: Sequence, *, deadline_s: float | None = None
    ) -> list[ScoreOutput]:
        """Let a worker score continuations."""
        parsed = parse_prompt(prompt)
        ids = parsed.token_ids or await self._encode(parsed.text or "")
        name = f"{self._prefix}-score-{next(self._numbers)}"
        ask = Ask(
            request_id=name,
            num_tokens=len(ids) * max(len(continuations), 1),
            keys={},
            max_tokens=len(continuations),
            arrival_s=time.monotonic(),
            deadline_s=deadline_s,
        )
        return await self._attempts.score(ask, list(ids), continuations)

    def chat_prompt(
        self,
        messages: Sequence[Mapping],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Render a conversation with the model's chat template and tokenize it."""
        text = chat.conversation_text(
            self._templates,
            self.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=chat_template_kwargs or {},
        )
        return self._tokenize(text, add_special_tokens=False)

    def abort(self, request_ids: Sequence[str]) -> None:
        """End requests by id, at whichever worker they are; other routers' requests too."""
        others = []
        for request_id in request_ids:
            if journey := self.journeys.get(request_id):
                journey.aborted = True
                self._attempts.abort(request_id)
                continue
            others.append(request_id)
            self._aborted.add(request_id)
        if others:
            task = asyncio.ensure_future(self.workers.abort(others))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def check_generates(self) -> None:
        """Nothing to refuse: the router finds a worker whose role it is."""

    def stop_admitting(self) -> None:
        """Refuse new requests from now on."""
        self._draining = True

    def loads(self) -> Loads:
        """Add up what the workers said last."""
        known = [link.load for link in self.workers.links.values() if link.load is not None]
        facts = [link.facts for link in self.workers.links.values() if link.facts is not None]
        return Loads(
            num_running=sum(load.num_running for load in known),
            num_waiting=sum(load.num_waiting for load in known) + self.num_waiting,
            num_pages=sum(each.num_pages for each in facts),
            num_free_pages=sum(load.num_free_pages for load in known),
            num_cached_pages=sum(load.num_cached_pages for load in known),
            page_size=self.info.page_size,
            max_num_seqs=sum(each.max_num_seqs for each in facts),
            num_open_requests=len(self.journeys),
        )

    def backlog(self) -> Backlog:
        """Add up what the workers have to compute."""
        known = [link.load for link in self.workers.links.values() if link.load is not None]
        return Backlog(
            sum(load.prefill_tokens for load in known),
            sum(load.num_decoding for load in known),
            sum(load.decode_tokens for load in known),
        )

    @property
    def num_waiting(self) -> int:
        """Requests that wait here for a worker."""
        return self.workers.placing.router.num_waiting

    @property
    def num_resumed(self) -> int:
        """How often a request has gone on at another worker."""
        return self._attempts.num_resumed

    def last_progress_s(self) -> float:
        """Now: whoever asks is on its loop."""
        return time.monotonic()

    def close(self) -> None:
        """Say that nothing is served any more; `Workers.close` ends the connections."""
        self.alive = False

    @contextlib.contextmanager
    def _live(self, journey: Journey) -> Iterator[None]:
        """Let a request be known by its id while a block runs, and note an error that ends it."""
        name = journey.request.id
        if self._draining:
            raise Unavailable(
                "RTPJ-4003 DRAINING: this router finishes what it has and takes nothing new. Try"
                " another one.",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._aborted.take(name):
            raise Cancelled(f"RTPJ-4002 ABORTED: request {name} was aborted.")
        if name in self.journeys:
            raise AlreadyExists(
                f"RTPJ-4005 DUPLICATE_ID: a live request has the id {name}. Choose another"
                " request_id, or wait until that one has ended.",
                field="request_id",
            )
        self.journeys[name] = journey
        self.num_requests += 1
        try:
            yield
        except RtpError as error:
            self._note_end(journey, error)
            raise
        finally:
            del self.journeys[name]

    def _note_end(self, journey: Journey, error: RtpError | None) -> None:
        """Count and log a request that ended; never its text."""
        request, timing = journey.request, journey.collector.output.timing
        self.num_failed += error is not None and error.kind in FAILURES
        words = "request %s %s: %d prompt tokens (%d cached), %d output tokens, %d workers lost, %s"
        logger.log(
            logging.INFO if error is None else logging.WARNING,
            words,
            request.id,
            "ended" if error is None else f"{error.id} {error.name}",
            len(request.prompt_token_ids),
            journey.num_cached_tokens,
            journey.num_output_tokens,
            journey.num_lost,
            "-" if timing.total_s is None else f"{timing.total_s:.3f} s",
        )

    def _ask(self, journey: Journey, session: str, tenant: str) -> Ask:
        """Say what the router must know to choose a worker for the rest of a request."""
        request = journey.request
        known = [*request.prompt_token_ids, *journey.token_ids[0]]
        return Ask(
            request_id=request.id,
            num_tokens=len(request.prompt_token_ids) + journey.num_output_tokens,
            keys={
                hashing: page_keys(hashing, request.cache_salt, known)
                for hashing in self.workers.placing.router.hashings
            },
            max_tokens=journey.tokens_left,
            priority=request.priority,
            tenant=tenant,
            session=session,
            arrival_s=request.arrival_s,
            deadline_s=request.deadline_s,
        )

    async def _prompt_ids(self, prompt: Prompt, params: SamplingParams) -> tuple[int, ...]:
        ids = prompt.token_ids
        if ids is None:
            ids = tuple(await self._encode(prompt.text or ""))
        keep = params.truncate_prompt_tokens
        if keep is None:
            return ids
        return ids[-(self.info.max_model_len - 1 if keep == -1 else keep) :]

    async def _encode(self, text: str) -> list[int]:
        if len(text) > LONG_TEXT_CHARS:
            return await asyncio.to_thread(self._tokenize, text)
        return self._tokenize(text)

    def _tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        longest = self.info.max_model_len * MAX_CHARS_PER_TOKEN
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens, max_chars=longest)


def seed_of(request_id: str) -> int:
    """Derive a seed: whichever router goes on with a request chooses the same."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")


def page_keys(hashing: PageHashing, cache_salt: str, token_ids: Sequence[int]) -> list[bytes]:
    """Return the identities of the full pages of some tokens, as a worker computes them."""
    identity = PageIdentity(
        hashing.page_key,
        page_size=hashing.page_size,
        model_epoch=hashing.model_epoch,
        kv_scheme=hashing.kv_scheme,
    )
    chain = PageChain(identity, identity.root(cache_salt=cache_salt))
    chain.extend(token_ids[: len(token_ids) // hashing.page_size * hashing.page_size])
    return chain.keys
