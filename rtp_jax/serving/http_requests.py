"""What does a JSON body ask?  OpenAI's names and vLLM's extras become prompts and sampling options.

Nothing is accepted and ignored: a field that is not listed here is refused by name, but for two
that ask nothing of a model (`IDLE`), and for values that ask for what happens anyway (`NEUTRAL`).
Read next: `http_replies.py`.
"""

import asyncio
from dataclasses import dataclass, fields, replace
from typing import Any

from rtp_jax.errors import InvalidArgument, Unimplemented
from rtp_jax.sampling_params import MAX_LOGIT_BIAS, OutputKind, SamplingParams, unknown_option
from rtp_jax.serving.checks import at_most
from rtp_jax.serving.prompts import MAX_TRUNCATION, check_text
from rtp_jax.serving.served import Served

MAX_PROMPTS = 1024  # of one body; each is a request of its own
IDLE = {"user", "metadata"}
NEUTRAL: dict[str, tuple] = {  # not supported -> values that ask for nothing
    "store": (False,),
    "service_tier": ("auto", "default"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none",),
    "functions": ([],),
    "suffix": ("",),
}
NEUTRAL |= dict.fromkeys(("parallel_tool_calls", "reasoning_effort", "structured_outputs"), ())
SAMPLING = {option.name for option in fields(SamplingParams)}
SAMPLING -= {"output_kind", "detokenize", "logprobs", "logit_bias"}  # not asked, or otherwise
BOTH = {"model", "stream", "stream_options", "logprobs", "logit_bias", "return_token_ids"}
ENGINE = {"cache_salt", "priority"}  # checked there
COMPLETION = BOTH | SAMPLING | ENGINE | {"prompt", "echo", "best_of"}
TEMPLATE = {"messages", "add_generation_prompt", "continue_final_message", "chat_template_kwargs"}
CHAT = BOTH | SAMPLING | ENGINE | TEMPLATE | {"top_logprobs", "max_completion_tokens"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How an answer is to look."""

    kind: str  # `object` of the answer
    chat: bool
    stream: bool
    include_usage: bool  # in a stream; a whole answer always has it
    num_top: int | None  # likely tokens beside the sampled one; None: no log-probabilities
    echo: bool
    prompt_only: bool  # an echo with max_tokens=0: the one token that was made is not shown
    prompt_logprobs: bool
    token_ids: bool


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks of the engine."""

    prompts: list[str | list[int]]
    params: SamplingParams
    options: dict  # some keywords of `stream_async`
    form: Form


def completion_asked(engine: Served, body: dict) -> Asked:
    """Read a body of `/v1/completions`."""
    _check_fields("/v1/completions", body, COMPLETION)
    options, echo, num_top = _sampling(body), _flag(body, "echo"), body.get("logprobs")
    if (best := body.get("best_of", options.get("n", 1))) != options.get("n", 1):
        raise wrong("best_of", best, "n, or left out")
    prompt_only = echo and options.get("max_tokens") == 0
    if prompt_only:
        options["max_tokens"] = 1
    if num_top is not None:
        options["logprobs"] = num_top
        if echo:
            options.setdefault("prompt_logprobs", num_top)
    form = _form(body, options, num_top, chat=False, echo=echo, prompt_only=prompt_only)
    truncation = MAX_TRUNCATION if "truncate_prompt_tokens" in options else 1
    prompts = _prompts(engine, body.get("prompt"), truncation)
    return _asked(engine, prompts, body, options, form)


async def chat_asked(engine: Served, body: dict) -> Asked:
    """Read a body of `/v1/chat/completions`; the conversation is rendered off the loop."""
    _check_fields("/v1/chat/completions", body, CHAT)
    options, num_top = _sampling(body), body.get("top_logprobs")
    limit = body.get("max_completion_tokens")
    if options.setdefault("max_tokens", limit) != limit and limit is not None:
        raise wrong("max_completion_tokens", limit, f"max_tokens={body['max_tokens']}")
    if _flag(body, "logprobs"):
        options["logprobs"] = num_top = num_top or 0
    elif num_top is not None:
        raise wrong("top_logprobs", num_top, "left out without logprobs=true")
    form = _form(body, options, num_top, chat=True, echo=False, prompt_only=False)
    if not isinstance(kwargs := body.get("chat_template_kwargs", {}), dict):
        raise wrong("chat_template_kwargs", kwargs, "an object")
    goes_on = _flag(body, "continue_final_message")
    ids = await asyncio.to_thread(
        engine.chat_prompt,
        body.get("messages", ()),
        add_generation_prompt=_flag(body, "add_generation_prompt", default=not goes_on),
        continue_final_message=goes_on,
        chat_template_kwargs=kwargs,
    )
    return _asked(engine, [ids], body, options, form)


def _check_fields(path: str, body: dict, known: set[str]) -> None:
    for name, value in body.items():
        if name in known or name in IDLE or value in NEUTRAL.get(name, ()):
            continue
        if name in NEUTRAL:
            raise Unimplemented(
                f"RTPJ-5406 BODY_FIELD_UNSUPPORTED: {name}={repr(value)[:80]} of {path} is not"
                " supported. Leave it out.",
                field=name,
            )
        raise unknown_option(path, name[:80], repr(value)[:80], sorted(known))


def wrong(name: str, value: object, allowed: str) -> InvalidArgument:
    """Build the error for a field, or a header, whose value cannot be."""
    return InvalidArgument(
        f"RTPJ-5407 BODY_FIELD_INVALID: {name}={repr(value)[:80]} is not allowed; it must be"
        f" {allowed}. Correct it.",
        field=name,
    )


def _flag(body: dict, name: str, *, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise wrong(name, value, "true or false")
    return value


def _sampling(body: dict) -> dict:
    options = {name: body[name] for name in SAMPLING if name in body}
    if (bias := body.get("logit_bias")) is not None:
        if not isinstance(bias, dict) or not all(i.isdecimal() and len(i) < 11 for i in bias):
            raise wrong("logit_bias", bias, "an object from token id to number")
        at_most("logit_bias", bias, MAX_LOGIT_BIAS, what="entries")
        options["logit_bias"] = {int(name): value for name, value in bias.items()}
    return options


def _form(body: dict, options: dict, num_top: int | None, *, chat: bool, **echo: bool) -> Form:
    stream, wishes = _flag(body, "stream"), body.get("stream_options", {})
    if not isinstance(wishes, dict) or (wishes and not stream):
        raise wrong("stream_options", wishes, "an object, beside stream=true")
    _check_fields("stream_options", wishes, {"include_usage"})
    if stream and "prompt_logprobs" in options:
        raise wrong("stream", stream, "false with log-probabilities of the prompt")
    return Form(
        kind=("chat.completion" + ".chunk" * stream) if chat else "text_completion",
        chat=chat,
        stream=stream,
        include_usage=_flag(wishes, "include_usage"),
        num_top=num_top,
        prompt_logprobs="prompt_logprobs" in body,
        token_ids=_flag(body, "return_token_ids"),
        **echo,
    )


def _asked(engine: Served, prompts: list, body: dict, options: dict, form: Form) -> Asked:
    """Put together what is asked; sampling that is not given is the model's own, as in vLLM."""
    kind = OutputKind.DELTA if form.stream else OutputKind.FINAL_ONLY
    params = replace(engine.info.default_sampling_params, **options, output_kind=kind)
    return Asked(prompts, params, {name: body[name] for name in ENGINE & body.keys()}, form)


def _prompts(engine: Served, value: Any, truncation: int) -> list[str | list[int]]:
    many = isinstance(value, list) and value and isinstance(value[0], str | list)
    prompts = value if many else [value]
    at_most("prompt", prompts, MAX_PROMPTS, what="prompts")
    for prompt in prompts:
        if isinstance(prompt, str):
            check_text(engine, "prompt", prompt)
        elif isinstance(prompt, list):  # what is in it is checked by the engine
            at_most("prompt", prompt, engine.info.max_model_len * truncation, what="token ids")
        else:
            raise wrong("prompt", prompt, "a text, token ids, or a list of these")
    return prompts
