"""An engine without a model, for tests of the doors: it answers with the characters of the prompt.

Token ids are code points plus one (0 is eos).  The prompt decides what happens: `boom` faults,
`slow` takes 20 ms a token, `busy` is refused.
"""

import asyncio
import contextlib
import time
from dataclasses import replace

from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RtpError,
    Unavailable,
)
from rtp_jax.outputs import CompletionOutput, Logprob, RequestOutput, ScoreOutput, Timing
from rtp_jax.page_record import KvLayout
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.transfer.offers import Offers

INFO = ModelInfo(
    name="fake",
    architecture="Echo",
    vocab_size=256,
    max_model_len=512,
    dtype="float32",
    kv_dtype="float32",
    page_size=16,
    num_pages=33,
    max_num_seqs=8,
    eos_token_ids=(0,),
    default_sampling_params=SamplingParams(max_tokens=4),
    fingerprint="f" * 16,
    epoch="e1",
    platform="cpu",
    tensor_parallel_size=1,
    num_parameters=0,
    buckets=(),
)


class CharacterTokenizer:
    """A token for each character below 255."""

    def encode(self, text: str) -> list[int]:
        """One id for each character."""
        return [min(ord(character), 254) + 1 for character in text]

    def decode(self, ids: list[int]) -> str:
        """The characters of ids; eos has none."""
        return "".join(chr(token_id - 1) for token_id in ids if token_id)


class FakeTransfer:
    """Computes nothing for others."""

    def __init__(self):
        self.role, self.layout = "both", KvLayout((), 16, "f" * 16, "float32")
        self.offers = Offers(epoch="e1", lease_s=1.0, max_bytes=1, on_end=print)
        self.direct = self.retires = None

    def begin(self, ask):
        """Refuse."""
        raise ResourceExhausted("RTPJ-4305 OFFERS_FULL: no room. Try another.", retry_after_s=0.5)


class FakeEngine:
    """Echoes prompts; keeps book of what is live, as the real one does."""

    def __init__(self, *, with_tokenizer: bool = True):
        self.info = INFO
        self.tokenizer = CharacterTokenizer() if with_tokenizer else None
        self.transfer = FakeTransfer()
        self.num_offers = 0
        self.alive = True
        self.stuck_since_s: float | None = None
        self.draining = self.closed = False
        self.live: dict[str, asyncio.Event] = {}
        self.aborted: set[str] = set()
        self.seen: list[dict] = []  # what each request was given

    def check_generates(self) -> None:
        """Refuse in the role of prefill."""
        if self.transfer.role == "prefill":
            raise Unavailable("RTPJ-4313 ROLE_REFUSES: no. Try another.", retry_after_s=0.5)

    async def stream_async(
        self,
        prompt,
        params=None,
        *,
        request_id=None,
        priority=0,
        deadline_s=None,
        cache_salt="",
        prefill_at=(),
        reuse=None,
        resume=(),
    ):
        """Answer with the prompt's own tokens, as often as it takes."""
        assert not any(resume), "it goes on behind nothing"
        params = params or INFO.default_sampling_params
        request_id = request_id or f"r-{len(self.seen)}"
        given = {"prompt": prompt, "params": params, "priority": priority}
        self.seen.append(
            given
            | {"id": request_id, "deadline_s": deadline_s, "cache_salt": cache_salt, "reuse": reuse}
            | {"prefill_at": tuple(prefill_at)}
        )
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        self._admit(request_id, ids)
        self.live[request_id] = aborted = asyncio.Event()
        try:
            async with contextlib.aclosing(
                self._outputs(request_id, prompt, ids, params, deadline_s, aborted)
            ) as outputs:
                async for output in outputs:
                    yield output
        finally:
            del self.live[request_id]

    def _admit(self, request_id: str, ids: list[int]) -> None:
        text = "".join(_character(i) for i in ids)
        if self.draining:
            raise Unavailable("RTPJ-4003 DRAINING: no. Try another.", retry_after_s=0.5)
        if request_id in self.aborted:
            self.aborted.discard(request_id)
            raise Cancelled(f"RTPJ-4002 ABORTED: request {request_id} was aborted.")
        if request_id in self.live:
            raise AlreadyExists("RTPJ-4005 DUPLICATE_ID: live.", field="request_id")
        if len(ids) + 1 > INFO.max_model_len or not ids or max(ids) >= INFO.vocab_size:
            raise InvalidArgument("RTPJ-2101 REQUEST_TOO_LARGE: no.", field="prompt")
        if "busy" in text:
            raise ResourceExhausted("RTPJ-2201 QUEUE_FULL: full. Retry.", retry_after_s=0.25)
        if "forbidden" in text:
            raise FailedPrecondition("RTPJ-4004 ENGINE_DEAD: state forbids it. No.")
        if "bug" in text:
            raise ZeroDivisionError("a secret of ours")

    async def _outputs(self, request_id, prompt, ids, params, deadline_s, aborted):
        text = "".join(_character(i) for i in ids)
        pause_s = 0.02 if "slow" in text else 0.0
        began = time.monotonic()
        limit = INFO.max_model_len - len(ids) if params.max_tokens is None else params.max_tokens
        parts = [CompletionOutput(i, "", []) for i in range(params.n)]
        whole = RequestOutput(request_id, prompt, ids, parts, finished=False)
        whole.num_cached_tokens, whole.cached_tokens = 3, {"device": 2, "host": 1}
        if params.prompt_logprobs is not None:
            whole.prompt_logprobs = [None, *({i: Logprob(-1.0, 1, _character(i))} for i in ids[1:])]
        for step in range(limit):
            await asyncio.sleep(pause_s)
            error = self._end(deadline_s, aborted, text if step == 2 else "")
            new = [ids[step % len(ids)]]
            for part in parts:
                self._extend(part, [] if error else new, params)
                if error:
                    part.finish_reason = "abort" if not isinstance(error, Internal) else "error"
                elif step == limit - 1:
                    part.finish_reason = "length"
            since = time.monotonic() - began
            first = whole.timing.first_token_s or since
            whole.timing = Timing(0.0, first, since)
            whole.error, whole.finished = error, all(part.finished() for part in parts)
            if params.output_kind == OutputKind.DELTA:
                for part in parts:
                    yield replace(whole, outputs=[_new(part, 0 if error else 1)])
            elif whole.finished:
                yield whole
            if whole.finished:
                return

    def _extend(self, part: CompletionOutput, new: list[int], params: SamplingParams) -> None:
        part.token_ids = part.token_ids + new
        if params.detokenize and self.tokenizer:
            part.text += self.tokenizer.decode(new)
        if params.logprobs is not None:
            entries = [
                {i: Logprob(-0.5, 1, _character(i)), 7: Logprob(-2.0, None, None)} for i in new
            ]
            part.logprobs = (part.logprobs or []) + entries
            part.cumulative_logprob = -0.5 * len(part.token_ids)

    def _end(self, deadline_s, aborted: asyncio.Event, text: str) -> RtpError | None:
        if deadline_s is not None and time.monotonic() >= deadline_s:
            return DeadlineExceeded("RTPJ-4001 DEADLINE: too late.")
        if aborted.is_set():
            return Cancelled("RTPJ-4002 ABORTED: aborted.")
        return Internal("RTPJ-4101 REQUEST_FAULT: boom.") if "boom" in text else None

    def chat_prompt(self, messages, **options):
        """Join what was said."""
        self.seen.append({"messages": [*messages], **options})
        return self.tokenizer.encode("".join(message["content"] for message in messages))

    async def score_async(self, prompt, continuations, *, deadline_s=None):
        """Give each token a logprob of -1."""
        scores = []
        for each in continuations:
            ids = self.tokenizer.encode(each) if isinstance(each, str) else list(each)
            scores.append(ScoreOutput("s", ids, [-1.0] * len(ids), True, len(prompt)))
        return scores

    def abort(self, request_ids):
        """End live requests; remember the others."""
        for request_id in request_ids:
            if request_id in self.live:
                self.live[request_id].set()
            else:
                self.aborted.add(request_id)

    def stop_admitting(self):
        """Refuse from now on."""
        self.draining = True

    def loads(self) -> Loads:
        """Say what is live."""
        return Loads(
            num_running=len(self.live),
            num_waiting=0,
            num_pages=32,
            num_free_pages=32 - len(self.live),
            num_cached_pages=0,
            page_size=16,
            max_num_seqs=8,
            num_open_requests=len(self.live),
        )

    def last_progress_s(self) -> float:
        """Now, or when it got stuck."""
        return time.monotonic() if self.stuck_since_s is None else self.stuck_since_s

    def close(self):
        """Note that it was closed."""
        self.closed = True


def _character(token_id: int) -> str:
    return chr(token_id - 1) if 0 < token_id < 256 else "?"


def _new(part: CompletionOutput, count: int) -> CompletionOutput:
    start = len(part.token_ids) - count
    logprobs = None if part.logprobs is None else part.logprobs[start:]
    text = part.text[len(part.text) - count :] if part.text else ""
    return replace(part, text=text, token_ids=part.token_ids[start:], logprobs=logprobs)
