"""What do the doors ask of an engine?  This, and nothing more.

`rtp_jax.engine.engine.Engine` is one; tests bring their own.  Read next: `generation_service.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.sampling_params import SamplingParams


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""
        ...

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids."""
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
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield outputs; the last one is finished.  Closing the generator aborts the request."""
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
