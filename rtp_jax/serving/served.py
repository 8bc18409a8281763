"""What do the doors ask of an engine?  This, and nothing more.

`rtp_jax.engine.engine.Engine` is one; tests bring their own.  Read next: `generation_service.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.engine.watched import Watched
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.request import Reuse
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.scheduler.backlog import Backlog
from rtp_jax.transfer.kv_service import Prefiller


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
        ...


class Exchanging(Prefiller, Protocol):
    """An engine that may exchange pages with others; see `engine/transfer.py`."""

    @property
    def exchanges_pages(self) -> bool:
        """Whether it gives pages to others and takes theirs."""
        ...

    @property
    def retires(self) -> str | None:
        """Why its process should drain and end; None: it need not."""
        ...

    def set_role(self, role: str) -> str:
        """Take another role, and return the one before."""
        ...


class Served(Protocol):
    """An engine that is ready, as a door sees it; every method may be called from the loop."""

    @property
    def info(self) -> ModelInfo:
        """Which model it serves."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Its tokenizer; None with skip_tokenizer_init."""
        ...

    @property
    def watched(self) -> Watched | None:
        """What routers may follow; None: it is made of workers, which they follow themselves."""
        ...

    def backlog(self) -> Backlog:
        """Say how many tokens are to be computed."""
        ...

    @property
    def transfer(self) -> Exchanging | None:
        """What it computes for others; None: it is made of workers."""
        ...

    @property
    def num_offers(self) -> int:
        """Prompts whose pages it holds for others."""
        ...

    def check_generates(self) -> None:
        """Refuse to generate where only pages are computed."""
        ...

    @property
    def alive(self) -> bool:
        """True while its loop runs."""
        ...

    def stream_async(
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
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield outputs; the last one is finished.  Closing the generator aborts the request.

        `resume` is the output that each completion has already.
        """
        ...

    def chat_prompt(
        self,
        messages: Sequence,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Render a conversation and return its token ids."""
        ...

    async def score_async(
        self, prompt: object, continuations: list, *, deadline_s: float | None = None
    ) -> list[ScoreOutput]:
        """Return the log-probabilities of given continuations."""
        ...

    def abort(self, request_ids: list[str]) -> None:
        """End requests by id; ids that are not here yet are remembered for a while."""
        ...

    def stop_admitting(self) -> None:
        """Refuse new requests from now on."""
        ...

    def loads(self) -> Loads:
        """Say how busy it is."""
        ...

    def last_progress_s(self) -> float:
        """Return when its loop last turned, by time.monotonic(); being idle is progress."""
        ...

    def close(self) -> None:
        """End its threads and give its memory back."""
        ...


def transfer_of(engine: Served) -> Exchanging:
    """Return how an engine exchanges pages; only a worker is asked."""
    assert engine.transfer is not None, "a router has no pages"
    return engine.transfer


async def last(outputs: AsyncGenerator[RequestOutput, None]) -> RequestOutput:
    """Wait for the last output of a stream."""
    output = None
    async with aclosing(outputs):
        async for each in outputs:
            output = each
    assert output is not None
    return output


async def merged(
    streams: Sequence[AsyncGenerator[RequestOutput, None]],
) -> AsyncGenerator[tuple[int, RequestOutput], None]:
    """Yield the outputs of several streams as they come, each with the number of its stream.

    The next output of a stream is asked for when the one before has been taken, so whoever reads
    slowly finds them joined.  Closing this, or an error in one stream, closes all.
    """
    if len(streams) == 1:  # no task for each output
        async with aclosing(streams[0]) as only:
            async for output in only:
                yield 0, output
        return
    waiting = {asyncio.ensure_future(_next(each)): number for number, each in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = waiting.pop(task)
                output = task.result()
                if output is not None:
                    waiting[asyncio.ensure_future(_next(streams[number]))] = number
                    yield number, output
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for each in streams:
            await each.aclose()


async def _next(stream: AsyncGenerator[RequestOutput, None]) -> RequestOutput | None:
    return await anext(stream, None)
