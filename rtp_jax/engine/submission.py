"""The way in: refuse what cannot be admitted, hand the rest to the loop, collect the results."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tqdm

from rtp_jax.delivery.collector import Collector
from rtp_jax.delivery.delivery import Delivery, Open, Reader, request_wall, reraise
from rtp_jax.engine.loop import Abort, EngineLoop
from rtp_jax.engine.readers import QueueReader
from rtp_jax.engine.requests import Prompt, RequestBuilder
from rtp_jax.errors import (
    AlreadyExists,
    Cancelled,
    InvalidArgument,
    ResourceExhausted,
    RtpError,
    Unavailable,
)
from rtp_jax.outputs import CompletionOutput, RequestOutput
from rtp_jax.request import Request
from rtp_jax.text.assembler import TextAssembler
from rtp_jax.text.tokenizer import Tokenizer

REMEMBER_ABORTS_S = 30.0  # an abort may overtake its request
MAX_REMEMBERED_ABORTS = 10_000
RETRY_AFTER_S = 1.0


class Bar(Protocol):
    """A progress bar."""

    def update(self, n: int = 1) -> Any:
        """Advance."""
        ...

    def set_postfix_str(self, s: str) -> Any:
        """Show a rate."""
        ...

    def close(self) -> Any:
        """Finish."""
        ...


class Submission:
    """Who may enter; thread-safe."""

    def __init__(
        self,
        *,
        builder: RequestBuilder,
        loop: EngineLoop,
        delivery: Delivery,
        tokenizer: Tokenizer | None,
        max_open: int,
    ):
        self.builder = builder
        self.draining = False
        self._loop = loop
        self._delivery = delivery
        self._tokenizer = tokenizer
        self._max_open = max_open  # sequences that may run or wait
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}  # live request id to its number of completions
        self._aborted: dict[str, float] = {}  # id that is not here yet to when to forget it

    def submit(self, request: Request, reader: Reader) -> None:
        """Admit a request and send it to the loop, or raise."""
        with request_wall(request.id, "text assembler", reraise):
            live = Open(
                request,
                reader,
                [self._assembler(request) for _ in range(request.params.n)],
                self._token_text,
                request.params.n,
            )
        self._enter(request)
        self._delivery.open(request, live)
        self._loop.send(request)

    def left(self, request_id: str) -> None:
        """Note that a request has ended."""
        with self._lock:
            self._open.pop(request_id, None)

    def abort(self, request_id: str) -> None:
        """Give a live request up, or remember the id for a while."""
        now = time.monotonic()
        with self._lock:
            live = request_id in self._open
            if not live:
                for old in [key for key, until in self._aborted.items() if until < now]:
                    del self._aborted[old]
                if len(self._aborted) < MAX_REMEMBERED_ABORTS:
                    self._aborted[request_id] = now + REMEMBER_ABORTS_S
        if live:
            self._loop.send(Abort(request_id))

    def deadline(self, timeout_s: float | None) -> float | None:
        """Turn seconds from now into an absolute deadline."""
        if timeout_s is None:
            return None
        number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not number or not 0 < timeout_s < float("inf"):
            raise InvalidArgument(
                f"RTPJ-1003 OPTION_INVALID: timeout_s={timeout_s!r} is not allowed; it must be a"
                " number of seconds > 0, or None.",
                field="timeout_s",
            )
        return time.monotonic() + timeout_s

    def run_all(
        self,
        builds: Sequence[Callable[[], Request]],
        *,
        prompts: Sequence[Prompt],
        use_tqdm: bool | Callable,
        on_error: str,
    ) -> list[RequestOutput]:
        """Run requests to their ends, as many at once as may be open; results keep their order."""
        run = _Run(self, list(builds), list(prompts), fail_fast=on_error == "raise")
        bar = _bar(use_tqdm, len(run.builds))
        try:
            return run.results(self._max_open, bar)
        finally:
            run.abort_rest()
            if bar is not None:
                bar.close()

    def _enter(self, request: Request) -> None:
        with self._lock:
            if self.draining:
                raise Unavailable(
                    "RTPJ-4003 DRAINING: this engine finishes what it has and takes nothing new."
                    " Try another worker.",
                    retry_after_s=RETRY_AFTER_S,
                )
            if not self._loop.alive:
                raise Unavailable(
                    "RTPJ-4004 ENGINE_DEAD: the engine's loop has ended. Restart the engine.",
                    retry_after_s=RETRY_AFTER_S,
                )
            if self._aborted.pop(request.id, 0.0) > time.monotonic():
                raise Cancelled(f"RTPJ-4002 ABORTED: request {request.id} was aborted.")
            if request.id in self._open:
                raise AlreadyExists(
                    f"RTPJ-4005 DUPLICATE_ID: a live request has the id {request.id}. Choose"
                    " another request_id, or wait until that one has ended.",
                    field="request_id",
                )
            num_open = sum(self._open.values())
            if num_open + request.params.n > self._max_open:
                raise ResourceExhausted(
                    f"RTPJ-2201 QUEUE_FULL: {num_open} sequences run or wait and request"
                    f" {request.id} brings {request.params.n}, {self._max_open} are allowed"
                    " (max_num_seqs + max_waiting). Retry later, or raise max_waiting.",
                    retry_after_s=RETRY_AFTER_S,
                )
            self._open[request.id] = request.params.n

    def _assembler(self, request: Request) -> TextAssembler | None:
        params = request.params
        if self._tokenizer is None or not params.detokenize:
            return None
        return TextAssembler(
            self._tokenizer,
            request.prompt_token_ids,
            stops=params.stops,
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )

    def _token_text(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.token_text(token_id)


class _Run:
    """One call of `generate`: what is left to submit, what is open, what has come back."""

    def __init__(
        self,
        submission: Submission,
        builds: list[Callable[[], Request]],
        prompts: list[Prompt],
        *,
        fail_fast: bool,
    ):
        self.builds = builds
        self._submission = submission
        self._prompts = prompts
        self._fail_fast = fail_fast
        self._reader = QueueReader()
        self._open: dict[str, tuple[int, Collector]] = {}
        self._results: list[RequestOutput | None] = [None] * len(builds)

    def results(self, max_open: int, bar: Bar | None) -> list[RequestOutput]:
        """Submit and collect until nothing is left."""
        if self._fail_fast:  # say what is wrong with any of them before the first one runs
            requests = [build() for build in self.builds]
            self.builds = [lambda request=request: request for request in requests]
        began, num_tokens, submitted = time.monotonic(), 0, 0
        while submitted < len(self.builds) or self._open:
            room = max_open - sum(len(c.output.outputs) for _, c in self._open.values())
            while submitted < len(self.builds) and room > 0:
                if (needed := self._submit(submitted, room)) is None:
                    break
                room -= needed
                submitted += 1
            if not self._open:
                continue
            output = self._collect()
            if output is not None and bar is not None:
                num_tokens += sum(len(part.token_ids) for part in output.outputs)
                rate = num_tokens / max(time.monotonic() - began, 1e-9)
                bar.set_postfix_str(f"{rate:.0f} output tokens/s")
                bar.update(1)
        return [result for result in self._results if result is not None]

    def abort_rest(self) -> None:
        """Give up what is still open, after an error."""
        for request_id in self._open:
            self._submission.abort(request_id)

    def _submit(self, index: int, room: int) -> int | None:
        """Submit one request and return its sequences, or None if it must wait for room."""
        try:
            request = self.builds[index]()
            if request.params.n > room and self._open:
                return None
            self._submission.submit(request, self._reader)
        except ResourceExhausted:
            if not self._open:
                raise
            return None  # others use the engine too: wait for one of ours to end
        except RtpError as error:
            if self._fail_fast:
                raise
            self._results[index] = _refused(index, self._prompts, error)
            return 0
        self._open[request.id] = index, Collector(request, request.params.n)
        return request.params.n

    def _collect(self) -> RequestOutput | None:
        """Take one delta; return the output of a request that it ended."""
        delta = self._reader.get()
        index, collector = self._open[delta.request_id]
        collector.add(delta)
        output = collector.output
        if not output.finished:
            return None
        del self._open[delta.request_id]
        if output.error is not None and self._fail_fast:
            raise output.error
        self._results[index] = output
        return output


def _refused(index: int, prompts: list[Prompt], error: RtpError) -> RequestOutput:
    """Stand in for a request that was refused, in its place in the results."""
    prompt = prompts[index] if prompts else Prompt(None, None)
    ids = list(prompt.token_ids or ())
    nothing = CompletionOutput(0, "", [], finish_reason="error")
    return RequestOutput(
        f"refused-{index}", prompt.text, ids, [nothing], finished=True, error=error
    )


def _bar(use_tqdm: bool | Callable, total: int) -> Bar | None:
    if callable(use_tqdm):
        return use_tqdm(total=total)
    if not use_tqdm or not sys.stderr.isatty():
        return None
    return tqdm.tqdm(total=total, desc="prompts", dynamic_ncols=True)
