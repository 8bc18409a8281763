"""Where requests wait for `router.Router` to give them a worker, as coroutines.

The router is plain data and decides when it is called; here is the clock, and who calls.
"""

import asyncio
import contextlib
import time

from rtp_jax.errors import Cancelled
from rtp_jax.router.facts import Ask, Choice, Refusal, Wait
from rtp_jax.router.router import Router

POLL_S = 0.02  # while requests wait
IDLE_S = 0.25


class Placing:
    """The router of this process, on its loop."""

    def __init__(self, router: Router):
        self.router = router
        self._waiting: dict[str, asyncio.Future[Choice]] = {}

    async def place(self, ask: Ask) -> Choice:
        """Get a worker for a request; waits as long as its deadline and the router's settings say.

        Raises:
          RtpError: the router refuses it.
        """
        answer = self.router.ask(ask, time.monotonic())
        if isinstance(answer, Wait):
            return await self._wait(ask.request_id)
        self.settle()
        if isinstance(answer, Refusal):
            raise answer.error
        return answer

    def started(self, request_id: str) -> None:
        """A request's first token came from the worker that it was given."""
        self.router.started(request_id, time.monotonic())
        self.settle()

    def finished(self, request_id: str, num_output_tokens: int) -> None:
        """A request has ended."""
        self.router.finished(request_id, time.monotonic(), num_output_tokens=num_output_tokens)
        self.settle()

    def failed(self, request_id: str) -> None:
        """A request has to go elsewhere."""
        self.router.failed(request_id, time.monotonic())
        self.settle()

    def give_up(self, request_id: str) -> None:
        """End the waiting of a request, if it waits."""
        waiting = self._waiting.get(request_id)
        if waiting is not None and not waiting.done():
            waiting.set_exception(
                Cancelled(f"RTPJ-4002 ABORTED: request {request_id} was aborted.")
            )

    def settle(self) -> None:
        """Tell the waiting requests that can go on."""
        for answer in self.router.poll(time.monotonic()):
            waiting = self._waiting.get(answer.request_id)
            if waiting is None or waiting.done():
                continue
            if isinstance(answer, Refusal):
                waiting.set_exception(answer.error)
            else:
                waiting.set_result(answer)

    async def run(self) -> None:
        """Look after the waiting requests, until cancelled."""
        while True:
            self.settle()
            await asyncio.sleep(POLL_S if self.router.num_waiting else IDLE_S)

    async def _wait(self, request_id: str) -> Choice:
        self._waiting[request_id] = asyncio.get_running_loop().create_future()
        with contextlib.ExitStack() as stack:
            stack.callback(self._waiting.pop, request_id)
            return await self._waiting[request_id]
