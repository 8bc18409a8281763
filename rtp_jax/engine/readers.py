"""Where deltas go: a queue for a thread, a queue for an asyncio loop.

Neither ever blocks delivery.  All of a step's deltas for one asyncio loop cross to it in one call,
and a reader that falls behind finds them put together: the busier the loop, the fewer the messages.
"""

import asyncio
import contextlib
import queue
import time
from collections.abc import Callable, Generator

from rtp_jax.delivery.collector import Delta, joined
from rtp_jax.outputs import RequestOutput

SHARE = 0.1  # of a core, for sending
LONGEST_WAIT_S = 0.1


class QueueReader:
    """Deltas for a thread that waits for them; several requests may share it."""

    def __init__(self):
        self._deltas: queue.SimpleQueue[Delta] = queue.SimpleQueue()

    def put(self, delta: Delta) -> None:
        """Take a delta, from the delivery thread."""
        self._deltas.put(delta)

    def flush(self) -> None:
        """Nothing to do: a waiting thread is already awake."""

    def get(self) -> Delta:
        """Wait for the next delta."""
        return self._deltas.get()


class Mailbox:
    """Unread deltas of one request, at most one of each completion; read on an asyncio loop."""

    def __init__(self, hub: "LoopHub"):
        self._hub = hub
        self._unread: dict[int, Delta] = {}
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """Take a delta, from the delivery thread."""
        self._hub.add(self, delta)

    def flush(self) -> None:
        """End of a step: let the hub hand over what all mailboxes of its loop got."""
        self._hub.flush()

    def receive(self, delta: Delta) -> None:
        """Add a delta to what is unread; called on the loop."""
        earlier = self._unread.get(delta.index)
        self._unread[delta.index] = delta if earlier is None else joined(earlier, delta)
        self._arrived.set()

    async def get(self) -> Delta:
        """Wait for a delta and take it."""
        await self._arrived.wait()
        delta = self._unread.pop(next(iter(self._unread)))
        if not self._unread:
            self._arrived.clear()
        return delta


class LoopHub:
    """Hands deltas over to the coroutines of one asyncio loop, at most once a step.

    Sending costs the loop's thread CPU time that the model could use: with many streams on few
    cores that is most of what a token costs.  So the loop is woken no more often than it takes
    `SHARE` of a core, and never later than `LONGEST_WAIT_S`; what comes in between is joined.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._step: list[tuple[Mailbox, Delta]] = []  # of the step that delivery is at
        self._arrived: list[tuple[Mailbox, Delta]] = []  # on the loop, not handed out yet
        self._timer: asyncio.TimerHandle | None = None
        self._woken_s = 0.0  # when deltas were last handed out, and the thread's CPU time then
        self._woken_cpu_s = 0.0

    def add(self, mailbox: Mailbox, delta: Delta) -> None:
        """Take a delta for a mailbox, from the delivery thread."""
        self._step.append((mailbox, delta))

    def flush(self) -> None:
        """Hand over what the step brought, from the delivery thread."""
        deltas, self._step = self._step, []
        if not deltas:
            return
        with contextlib.suppress(RuntimeError):  # the loop has been closed, and its readers with it
            self._loop.call_soon_threadsafe(self._arrive, deltas)

    def _arrive(self, deltas: list[tuple[Mailbox, Delta]]) -> None:
        self._arrived += deltas
        if self._timer is not None:
            return
        spent_s = time.thread_time() - self._woken_cpu_s
        wait_s = min(self._woken_s + spent_s / SHARE - self._loop.time(), LONGEST_WAIT_S)
        if wait_s > 0:
            self._timer = self._loop.call_later(wait_s, self._hand_out)
        else:
            self._hand_out()

    def _hand_out(self) -> None:
        deltas, self._arrived, self._timer = self._arrived, [], None
        self._woken_s, self._woken_cpu_s = self._loop.time(), time.thread_time()
        for mailbox, delta in deltas:
            mailbox.receive(delta)


class Stream:
    """The outputs of one request as they come; closing or dropping it gives the request up."""

    def __init__(self, outputs: Generator[RequestOutput, None, None], give_up: Callable[[], None]):
        self._outputs = outputs
        self._give_up = give_up

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> RequestOutput:
        return next(self._outputs)

    def close(self) -> None:
        """Give the request up, if it has not ended."""
        self._outputs.close()
        self._give_up()

    def __del__(self):
        self.close()
