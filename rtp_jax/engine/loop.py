"""The engine's loop: every station a token passes, by name.

    request -> tokenizer -> [ schedule -> prepare -> execute -> commit ] -> delivery

Read this file first.  It decides nothing itself: policy is in `scheduler/`, arrays are in
`runner/`, and the only thing handed from one to the other is a `StepPlan`.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from rtp_jax.delivery.delivery import request_wall
from rtp_jax.errors import Internal, RtpError
from rtp_jax.page_record import PageMoves
from rtp_jax.request import (
    FinishReason,
    Phase,
    Request,
    Sequence,
    StepPlan,
    StepResult,
    TokenOutput,
)
from rtp_jax.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)
IDLE_TURN_S = 0.5  # an idle loop looks at deadlines, and shows that it lives, this often
PARKED_TURN_S = 0.01  # one that waits for pages looks whether they are late


class Step(Protocol):
    """A step that is enqueued on the device."""

    @property
    def bucket(self) -> tuple[int, int]:
        """Padded tokens and sequences."""
        ...

    def to_host(self) -> StepResult:
        """Wait for its results."""
        ...


class CompileCounter(Protocol):
    """Programs compiled since the engine was ready."""

    @property
    def count(self) -> int:
        """How many; anything but zero is an alarm."""
        ...


class Executor(Protocol):
    """The runner, as the loop sees it."""

    def prepare(self, plan: StepPlan, /) -> Any:
        """Pad a plan to arrays."""
        ...

    def execute(self, batch: Any, /) -> Step:
        """Enqueue a step."""
        ...

    def move(self, moves: PageMoves, /) -> None:
        """Enqueue copies of pages."""
        ...

    def reset_state(self) -> None:
        """Start over with empty pages."""
        ...

    def watch_compiles(self) -> CompileCounter:
        """Count what the calling thread compiles from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Stop:
    """Delivery ended the text: the sequence ends with its first `num_output_tokens`."""

    request_id: str
    index: int
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Abort:
    """Somebody gave a request up."""

    request_id: str


@dataclass(frozen=True, slots=True)
class ResetPrefixCache:
    """Forget every page that no sequence uses."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """Pages from a tier below the device are here: parked sequences may go on."""


Message = Request | Stop | Abort | ResetPrefixCache | Arrived


@dataclass(slots=True)
class StepTimes:
    """Where the time of a step went, in seconds of the host."""

    plan: StepPlan
    bucket: tuple[int, int]  # padded tokens, padded sequences
    schedule_s: float
    prepare_s: float
    dispatch_s: float
    wait_s: float = 0.0  # for the device
    commit_s: float = 0.0
    device_s: float = 0.0  # from when the device could begin until the host had the results
    compiles: int = 0  # since the engine was ready


@dataclass(slots=True)
class InFlight:
    """A launched step."""

    plan: StepPlan
    step: Step
    times: StepTimes
    launched_s: float  # of `time.perf_counter()`


class EngineLoop:
    """One thread that owns the scheduler, the runner and all their state."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Executor,
        *,
        deliver: Callable[[list[TokenOutput]], None],
        record: Callable[["StepTimes"], None],
        on_end: Callable[[], None],
    ):
        self.last_progress_s = time.monotonic()
        self._scheduler = scheduler
        self._runner = runner
        self._deliver = deliver
        self._record = record
        self._on_end = on_end
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._arrived_s = 0.0  # when the results of the step before were here
        self._launching: StepPlan | None = None  # a plan whose step is not enqueued yet
        self._suspects: deque[Sequence] = deque()  # of a failed step: each runs alone once
        self._scheduling = False  # true where an exception is the scheduler's and no step's
        self._scheduler_faults = 0  # since everybody was last scheduled together
        self._thread = threading.Thread(target=self._run, name="rtp-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """True while the thread serves."""
        return self._thread.is_alive()

    def send(self, message: Message) -> None:
        """Hand a message to the loop, from any thread."""
        self._inbox.put(message)

    def close(self) -> None:
        """End the loop; whatever still runs is aborted."""
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        """Serve until the inbox closes; the body of the engine thread, which owns all state."""
        in_flight: InFlight | None = None
        self._compiles = self._runner.watch_compiles()
        try:
            while True:
                try:
                    if not self._take_messages(wait=in_flight is None):
                        break
                    self.last_progress_s = time.monotonic()
                    in_flight = self._turn(in_flight)
                except Exception:
                    logger.exception("a step failed; its requests are retried one by one")
                    in_flight = self._recover(in_flight)
            if in_flight is not None:
                in_flight.step.to_host()  # the device may still write to what is about to be freed
        finally:
            self._on_end()  # however it ended, nobody is left waiting

    def _turn(self, in_flight: InFlight | None) -> InFlight | None:
        """Launch one step and commit the one before, so that the device never waits for the host.

        `_launch` returns as soon as the step is enqueued.  While the device computes step n, the
        host commits step n-1 and schedules step n+1; step n+1 reads the tokens of step n from
        device memory, never from the host.  The price: a sequence that ends at step n is already
        scheduled for n+1, and `commit` drops that one token.
        """
        self._deliver(self._scheduler.expire(time.monotonic()))
        launched = self._launch()
        if in_flight is not None:
            self._commit(in_flight)
        return launched

    def _launch(self) -> InFlight | None:
        began = time.perf_counter()
        self._drop_ended_suspects()
        only = self._suspects[0] if self._suspects else None
        self._scheduling = True
        plan = self._launching = self._scheduler.schedule(time.monotonic(), only=only)
        self._scheduling = False
        if only is None:
            self._scheduler_faults = 0
        if moves := self._scheduler.take_moves():
            self._runner.move(moves)
        if plan is None:
            return None
        scheduled = time.perf_counter()
        batch = self._runner.prepare(plan)
        prepared = time.perf_counter()
        step = self._runner.execute(batch)
        done = time.perf_counter()
        self._launching = None
        times = StepTimes(
            plan, step.bucket, scheduled - began, prepared - scheduled, done - prepared
        )
        return InFlight(plan, step, times, done)

    def _commit(self, done: InFlight) -> None:
        began = time.perf_counter()
        result = done.step.to_host()
        arrived = time.perf_counter()
        self._deliver(self._scheduler.commit(done.plan, result, time.monotonic()))
        self._clear_suspect(done.plan)
        done.times.device_s = arrived - max(done.launched_s, self._arrived_s)
        self._arrived_s = arrived
        done.times.wait_s = arrived - began
        done.times.commit_s = time.perf_counter() - arrived
        done.times.compiles = self._compiles.count
        self._record(done.times)

    def _take_messages(self, *, wait: bool) -> bool:
        """Handle what has arrived; with nothing to do, wait for more.  False: the inbox closed."""
        patience_s = self._patience_s() if wait else 0.0
        try:
            if patience_s:
                message = self._inbox.get(timeout=patience_s)
            else:
                message = self._inbox.get_nowait()
            while message is not None:
                self._handle(message)
                message = self._inbox.get_nowait()
        except queue.Empty:
            return True
        return False

    def _patience_s(self) -> float:
        """Say how long a loop without a step in flight waits for messages; 0: there is work."""
        scheduler = self._scheduler
        if scheduler.has_moves:
            return 0.0
        if scheduler.is_parked:
            return PARKED_TURN_S
        return 0.0 if scheduler.has_work else IDLE_TURN_S

    def _handle(self, message: Message) -> None:
        scheduler, now_s = self._scheduler, time.monotonic()
        if isinstance(message, Request):
            with request_wall(message.id, "scheduler", lambda e: self._refuse(message, e)):
                scheduler.add(message, now_s)
        elif isinstance(message, Stop):
            scheduler.finish(message.request_id, message.index, message.num_output_tokens)
        elif isinstance(message, Abort):
            self._deliver(scheduler.abort(message.request_id))
        elif isinstance(message, ResetPrefixCache):
            scheduler.reset_prefix_cache()

    def _recover(self, in_flight: InFlight | None) -> InFlight | None:
        """Start over with empty pages; retry each sequence of the failed steps alone, once.

        The donated state of a failed step is gone, so every running sequence prefills again.  What
        fails alone ends with INTERNAL; what succeeds alone goes back to the others.
        """
        plans = [in_flight.plan if in_flight else None, self._launching]
        involved = [row.sequence for plan in plans if plan for row in plan.rows]
        self._launching = None
        self._scheduler_faults += self._scheduling
        self._scheduling = False
        if not involved or self._scheduler_faults > 1:  # not a step but the scheduling is at fault
            self._end_everything()
            return None
        alone = len(set(involved)) == 1 and involved[0] in self._suspects
        self._scheduler.requeue_running()
        self._runner.reset_state()
        if alone:
            culprit = involved[0]
            error = Internal(
                f"RTPJ-4102 STEP_FAILED: a step failed twice with request {culprit.request.id},"
                " the second time alone. Other requests go on. The log has the trace."
            )
            self._deliver(self._scheduler.fail(culprit, error))
        fresh = [s for s in dict.fromkeys(involved) if not alone and s not in self._suspects]
        self._suspects.extend(fresh)
        self._drop_ended_suspects()
        return None

    def _end_everything(self) -> None:
        """End every live request, when nobody can say which one is at fault."""
        error = Internal(
            "RTPJ-4104 SCHEDULER_FAILED: the scheduler failed and every live request was ended."
            " New requests are served. The log has the trace; please report it."
        )
        self._deliver(self._scheduler.abort_all(error))
        self._scheduler.requeue_running()
        self._runner.reset_state()
        self._suspects.clear()
        self._scheduler_faults = 0

    def _refuse(self, request: Request, error: RtpError) -> None:
        """End a request that could not enter the scheduler."""
        self._scheduler.abort(request.id)
        self._deliver([ended(request.id, index, error) for index in range(request.params.n)])

    def _clear_suspect(self, plan: StepPlan) -> None:
        """A suspect that ran alone and came through its step joins the others again."""
        if self._suspects and any(row.samples for row in plan.rows):
            ran = {id(row.sequence) for row in plan.rows}
            if id(self._suspects[0]) in ran:
                self._suspects.popleft()
        self._drop_ended_suspects()

    def _drop_ended_suspects(self) -> None:
        while self._suspects and self._suspects[0].phase == Phase.FINISHED:
            self._suspects.popleft()


def ended(request_id: str, index: int, error: RtpError) -> TokenOutput:
    """The output of a sequence that ends before it began."""
    return TokenOutput(request_id, index, [], finish_reason=FinishReason.ERROR, error=error)
