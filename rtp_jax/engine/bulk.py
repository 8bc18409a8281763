"""Many requests at once: submit as there is room, collect as they end, keep the order."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tqdm

from rtp_jax.delivery.collector import Collector
from rtp_jax.engine.readers import QueueReader
from rtp_jax.engine.requests import Prompt
from rtp_jax.engine.submission import Submission
from rtp_jax.errors import ResourceExhausted, RtpError
from rtp_jax.outputs import CompletionOutput, RequestOutput
from rtp_jax.request import Request


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


def run_all(
    submission: Submission,
    builds: Sequence[Callable[[], Request]],
    *,
    prompts: Sequence[Prompt],
    use_tqdm: bool | Callable,
    on_error: str,
) -> list[RequestOutput]:
    """Run requests to their ends, as many at once as may be open; results keep their order."""
    run = _Run(submission, list(builds), list(prompts), fail_fast=on_error == "raise")
    bar = _bar(use_tqdm, len(run.builds))
    try:
        return run.results(submission.max_open, bar)
    finally:
        run.abort_rest()
        if bar is not None:
            bar.close()


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
        self._requests: dict[str, Request] = {}
        self._results: list[RequestOutput | None] = [None] * len(builds)
        self._next: Request | None = None  # built, and waiting for room

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
        for request in self._requests.values():
            self._submission.give_up(request)

    def _submit(self, index: int, room: int) -> int | None:
        """Submit one request and return its sequences, or None if it must wait for room."""
        try:
            request = self._next = self._next or self.builds[index]()
            if request.params.n > room and self._open:
                return None
            self._submission.submit(request, self._reader)
        except RtpError as error:
            if isinstance(error, ResourceExhausted) and self._open:
                return None  # others use the engine too: wait for one of ours to end
            if self._fail_fast:
                raise
            self._results[index] = _refused(index, self._prompts, error)
            self._next = None
            return 0
        self._next = None
        self._requests[request.id] = request
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
        del self._open[delta.request_id], self._requests[delta.request_id]
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
