"""The Python API: `Engine.generate` and its siblings, over one loop.

    with Engine("rtp-tiny") as engine:
        for output in engine.generate(["1 + 1 =", "2 + 2 ="], SamplingParams(temperature=0)):
            print(output.outputs[0].text)

What wires the rooms together is `build.py`; what happens to a token is in `loop.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rtp_jax.config import EngineConfig
from rtp_jax.delivery.collector import Collector
from rtp_jax.engine.bulk import run_all
from rtp_jax.engine.collection import collection_paused
from rtp_jax.engine.info import Loads, ModelInfo
from rtp_jax.engine.loop import ResetPrefixCache
from rtp_jax.engine.readers import LoopHub, Mailbox, QueueReader, Stream
from rtp_jax.engine.requests import (
    Prompt,
    check_reuse,
    check_salt,
    match_params,
    parse_prompt,
    parse_prompts,
)
from rtp_jax.engine.scoring import Scoring, score_requests
from rtp_jax.engine.submission import Submission
from rtp_jax.engine.weights_memory import weights_memory
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.late_imports import late
from rtp_jax.metrics import Metrics
from rtp_jax.outputs import RequestOutput, ScoreOutput
from rtp_jax.request import Request, Reuse
from rtp_jax.sampling_params import OutputKind, SamplingParams
from rtp_jax.text.tokenizer import Tokenizer

chats = late("rtp_jax.text.chat")
choosing = late("rtp_jax.engine.kv_choice")
building = late("rtp_jax.engine.build")  # and jax: memory for weights is made ready meanwhile


class Engine:
    """A model, ready to generate; use it as a context manager, or call `close`."""

    def __init__(
        self,
        model: str,
        *,
        progress: Callable[[str], None] | None = None,
        metrics: Metrics | None = None,
        **options: object,
    ):
        """Load a model and compile its steps; returns when it can serve.

        Args:
          model: a folder, `rtp-tiny`, or the name of a model in the local Hugging Face cache.
          progress: told what is being done, one line at a time.
          metrics: where to count; by default the engine counts for itself.
          options: fields of `EngineConfig`'s sections, by name: dtype, max_model_len, ...
        """
        config = EngineConfig.from_options(**options)
        with collection_paused(), weights_memory(model, config) as memory:
            parts = building.build(
                model, config, progress=progress or _silent, metrics=metrics, memory=memory
            )
        self._submission: Submission = parts.submission
        self.info: ModelInfo = parts.info
        self.metrics: Metrics = parts.metrics
        self.transfer, self.check_generates = parts.transfer, parts.transfer.check_generates
        self.tokenizer: Tokenizer | None = parts.tokenizer
        self.watched, self.backlog = parts.watched, parts.scheduler.backlog  # for routers
        self.default_sampling_params: SamplingParams = parts.default_params
        self._hubs: dict[asyncio.AbstractEventLoop, LoopHub] = {}
        self._parts = parts

    @staticmethod
    def choose_kv_layers(
        model: str,
        texts: Sequence[str],
        *,
        budget: float,
        progress: Callable[[str], None] | None = None,
        **options: object,
    ) -> Any:
        """Measure on texts which layers may keep KV in int8 or fp8; `kv_layers` takes the answer.

        Args:
          model: as for an engine.
          texts: a few pages, of the kind that the model will read.
          budget: how far the distribution of the next token may move: KL in nats per token.
          progress: told each figure.
          options: as for an engine, without `kv_dtype` and `kv_layers`.

        Returns:
          A `rtp_jax.engine.kv_choice.KVChoice`.
        """
        config = EngineConfig.from_options(**options)
        report = progress or _silent
        return choosing.choose_kv_layers(model, config, texts, budget=budget, progress=report)

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Abort what runs, end the threads and give the memory back; may be called again."""
        self._parts.close()

    def generate(
        self,
        prompts: object,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool | Callable = True,
        priority: int = 0,
        timeout_s: float | None = None,
        on_error: str = "raise",
    ) -> list[RequestOutput]:
        """Generate for one prompt or many; results come in the order of the prompts.

        Args:
          prompts: a str, token ids, {"prompt_token_ids": [...]}, or a list of these.
          sampling_params: one for all, one for each, or None for the model's defaults.
          use_tqdm: show a progress bar on stderr if it is a terminal; or what makes one.
          priority: lower goes first.
          timeout_s: seconds from now for all of them together.
          on_error: "raise" the first error, or "return" it in `RequestOutput.error`.

        Raises:
          RtpError: a prompt or option is wrong or a request failed, unless on_error="return".
        """
        if on_error not in ("raise", "return"):
            raise InvalidArgument(
                f"RTPJ-1003 OPTION_INVALID: on_error={on_error!r} is not allowed; it must be"
                " raise or return.",
                field="on_error",
            )
        parsed, _ = parse_prompts(prompts)
        params = match_params(sampling_params, len(parsed), self.default_sampling_params)
        params = [replace(each, output_kind=OutputKind.FINAL_ONLY) for each in params]
        deadline_s = self._submission.deadline(timeout_s)
        return run_all(
            self._submission,
            [
                lambda prompt=prompt, each=each: self._submission.builder.build(
                    prompt, each, priority=priority, deadline_s=deadline_s
                )
                for prompt, each in zip(parsed, params, strict=True)
            ],
            prompts=parsed,
            use_tqdm=use_tqdm,
            on_error=on_error,
        )

    def stream(
        self,
        prompt: object,
        sampling_params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        priority: int = 0,
        timeout_s: float | None = None,
        output_kind: OutputKind | str = OutputKind.DELTA,
    ) -> Stream:
        """Generate for one prompt and yield outputs as they come; closing or dropping it aborts."""
        params = sampling_params or self.default_sampling_params
        request = self._submission.builder.build(
            parse_prompt(prompt),
            replace(params, output_kind=output_kind),
            request_id=request_id,
            priority=priority,
            deadline_s=self._submission.deadline(timeout_s),
        )
        reader = QueueReader()
        self._submission.submit(request, reader)
        return Stream(self._read(request, reader), lambda: self._submission.give_up(request))

    def chat(
        self,
        messages: Sequence,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool | Callable = True,
        on_error: str = "raise",
    ) -> list[RequestOutput]:
        """Answer one conversation or a list of them, rendered with the model's chat template."""
        many = len(messages) > 0 and not isinstance(messages[0], Mapping)
        conversations = messages if many else [messages]
        prompts = [
            self.chat_prompt(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        if sampling_params is None:
            sampling_params = replace(self.default_sampling_params, max_tokens=None)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, on_error=on_error)

    def score(
        self, prompt: object, continuations: Sequence, *, timeout_s: float | None = None
    ) -> list[ScoreOutput]:
        """Return the log-probability that the model gives to each continuation of a prompt."""
        scoring = self._scoring(prompt, continuations, self._submission.deadline(timeout_s))
        outputs = run_all(
            self._submission,
            [lambda request=request: request for request in scoring.requests],
            prompts=[],
            use_tqdm=False,
            on_error="raise",
        )
        return scoring.read(outputs)

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
    ) -> AsyncIterator[RequestOutput]:
        """Yield the outputs of one request; closing or cancelling the generator aborts it.

        Args:
          prompt: a str, token ids or {"prompt_token_ids": [...]}; tokenized off the loop.
          params: `output_kind` says what is yielded.
          request_id: must not be live already.
          priority: lower goes first.
          deadline_s: absolute, on `time.monotonic()`'s clock.
          cache_salt: only requests with the same salt share cached pages.
          prefill_at: workers (HOST:PORT) that may compute KV pages of the prompt, best first.
          reuse: which tiers of KV may be used; None: all there are.
          resume: output ids that each completion has already; what is yielded comes after them.
        """
        others = self.transfer.check_prefill_at(tuple(prefill_at))
        parsed = parse_prompt(prompt)
        if reuse is not None:
            parsed = replace(parsed, reuse=check_reuse(reuse))
        if cache_salt:
            parsed = replace(parsed, cache_salt=check_salt(cache_salt))
        request = await self._build_async(
            parsed,
            params or self.default_sampling_params,
            request_id=request_id,
            priority=priority,
            deadline_s=deadline_s,
            resume=resume,
        )
        outputs = self._read_async(replace(request, prefill_at=others), asyncio.get_running_loop())
        try:
            async for output in outputs:
                yield output
        finally:
            await outputs.aclose()

    async def score_async(
        self, prompt: object, continuations: Sequence, *, deadline_s: float | None = None
    ) -> list[ScoreOutput]:
        """Like `score`, for an asyncio loop."""
        loop = asyncio.get_running_loop()
        scoring = await asyncio.to_thread(self._scoring, prompt, continuations, deadline_s)
        tasks = [
            asyncio.ensure_future(self._last(self._read_async(request, loop)))
            for request in scoring.requests
        ]
        try:
            return scoring.read(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # after one that failed, nobody reads the others
                task.cancel()

    def chat_prompt(
        self,
        messages: Sequence[Mapping],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Render a conversation with the model's chat template and tokenize it."""
        if self.tokenizer is None:
            raise FailedPrecondition(
                "RTPJ-1007 NO_TOKENIZER: messages are text and this engine was started with"
                " skip_tokenizer_init=True. Use generate with prompt_token_ids.",
                field="messages",
            )
        text = chats.conversation_text(
            self._parts.templates,
            self.tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=chat_template_kwargs or {},
        )
        return self._submission.builder.encode(text, add_special_tokens=False)

    def abort(self, request_ids: str | Sequence[str]) -> None:
        """Give requests up; an unknown id is remembered, as an abort may overtake its request."""
        ids = [request_ids] if isinstance(request_ids, str) else request_ids
        for request_id in ids:
            self._submission.abort(request_id)

    def stop_admitting(self) -> None:
        """Refuse new requests from now on; the running ones finish."""
        self._submission.stop()

    @property
    def num_offers(self) -> int:
        """Prompts whose pages are held for other workers."""
        return self.transfer.offers.counts.open

    def loads(self) -> Loads:
        """Say how busy the engine is."""
        return self._parts.loads()

    @property
    def alive(self) -> bool:
        """True while the engine's threads serve."""
        return self._parts.loop.alive and self._parts.delivery.alive

    def last_progress_s(self) -> float:
        """Return when the loop last turned, on `time.monotonic()`'s clock; idling is progress."""
        return self._parts.loop.last_progress_s

    def get_tokenizer(self) -> Tokenizer | None:
        """Return the tokenizer."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what `generate` uses when it is given none."""
        return self.default_sampling_params

    def reset_prefix_cache(self) -> None:
        """Forget all cached pages that no sequence uses."""
        self._parts.loop.send(ResetPrefixCache())

    def _scoring(
        self, prompt: object, continuations: Sequence, deadline_s: float | None
    ) -> Scoring:
        return score_requests(
            self._submission.builder, parse_prompt(prompt), continuations, deadline_s
        )

    def _read(self, request: Request, reader: QueueReader) -> Generator[RequestOutput, None, None]:
        collector = Collector(request, request.params.n)
        while not collector.output.finished:
            if (output := collector.add(reader.get())) is not None:
                yield output
        if collector.output.error is not None:
            raise collector.output.error

    async def _build_async(self, prompt: Prompt, params: SamplingParams, **options) -> Request:
        """Build a request; text is tokenized in another thread."""
        if prompt.text is None and not params.bad_words and not options.get("resume"):
            return self._submission.builder.build(prompt, params, **options)
        return await asyncio.to_thread(self._submission.builder.build, prompt, params, **options)

    async def _read_async(
        self, request: Request, loop: asyncio.AbstractEventLoop
    ) -> AsyncGenerator[RequestOutput, None]:
        collector = Collector(request, request.params.n)
        mailbox = Mailbox(self._hub(loop))
        assemblers = None
        if request.resumed:  # which reads all that was sent before
            assemblers = await asyncio.to_thread(self._submission.assemblers, request)
        self._submission.submit(request, mailbox, assemblers)
        try:
            while not collector.output.finished:
                if (output := collector.add(await mailbox.get())) is not None:
                    yield output
        finally:
            self._submission.give_up(request)

    def _hub(self, loop: asyncio.AbstractEventLoop) -> LoopHub:
        for old in [old for old in self._hubs if old.is_closed()]:
            del self._hubs[old]
        return self._hubs.setdefault(loop, LoopHub(loop))

    async def _last(self, outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
        return [output async for output in outputs][-1]


def _silent(line: str) -> None:
    """Show nothing."""
