"""Where deltas go: a queue for a thread, a queue for an asyncio loop.

Neither ever blocks delivery.  All of a step's deltas for one asyncio loop cross to it in one call.
"""

import asyncio
import queue

from rtp_jax.delivery.collector import Delta


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


class LoopReader:
    """Deltas for the coroutines of one asyncio loop, handed over once a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._loop = loop
        self._queues: dict[str, asyncio.Queue[Delta]] = {}
        self._step: list[Delta] = []

    def open(self, request_id: str) -> asyncio.Queue[Delta]:
        """Make the queue of a request; called on the loop."""
        return self._queues.setdefault(request_id, asyncio.Queue())

    def close(self, request_id: str) -> None:
        """Forget a request whose reader is gone; called on the loop."""
        self._queues.pop(request_id, None)

    def put(self, delta: Delta) -> None:
        """Take a delta, from the delivery thread."""
        self._step.append(delta)

    def flush(self) -> None:
        """Hand over what the step brought, from the delivery thread."""
        deltas, self._step = self._step, []
        if deltas and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._hand_out, deltas)

    def _hand_out(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            if (queue_ := self._queues.get(delta.request_id)) is not None:
                queue_.put_nowait(delta)
