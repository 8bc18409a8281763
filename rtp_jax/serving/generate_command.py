"""`rtp-jax generate` and `rtp-jax chat`: text on the terminal, from an engine here or a server."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from rtp_jax.errors import InvalidArgument, RtpError
from rtp_jax.outputs import RequestOutput
from rtp_jax.request import EVERY_TIER, TIERS, Reuse
from rtp_jax.sampling_params import SamplingParams
from rtp_jax.serving.auth import read_tokens
from rtp_jax.serving.client import Client
from rtp_jax.serving.client_messages import RequestOptions, Tls
from rtp_jax.serving.flags import add_sampling, add_settings, parse, sampling_of, settings_of
from rtp_jax.serving.local_engine import start_engine

MAX_STDIN_CHARS = 64 << 20
CHAT_HELP = "Write a line; an empty one, /exit or Ctrl-D ends, Ctrl-C stops an answer."


@dataclass(frozen=True, slots=True)
class Source:
    """Where tokens come from."""

    owner: AbstractContextManager  # closed at the end
    stream: Callable[[Any, SamplingParams], Iterator[RequestOutput]]
    chat_prompt: Callable[[list[dict[str, str]]], object]


def generate(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Continue prompts, or standard input, and show the text as it comes."""
    _add_source(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="none: standard input")
    parser.add_argument(
        "--no-reuse",
        action="append",
        default=[],
        choices=TIERS,
        help="leave a tier of KV alone; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object for each prompt")
    parsed = parse(parser, arguments)
    params = sampling_of(parsed, {})
    prompts = parsed.prompts or [sys.stdin.read(MAX_STDIN_CHARS)]
    failed = False
    reuse = Reuse(**dict.fromkeys(parsed.no_reuse, False))
    with (source := _source(parsed, reuse)).owner:
        for prompt in prompts:
            try:
                _show(source.stream(prompt, params), prompt, as_json=parsed.json)
            except RtpError as error:
                if len(prompts) == 1:
                    raise
                print(f"rtp-jax: {error}", file=sys.stderr)
                failed = True
    return int(failed)


def chat(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Talk, line by line."""
    _add_source(parser)
    parser.add_argument("--system", help="what the model is told first")
    parsed = parse(parser, arguments)
    params = sampling_of(parsed, {"max_tokens": None})
    messages = [{"role": "system", "content": parsed.system}] if parsed.system else []
    with (source := _source(parsed)).owner:
        print(CHAT_HELP, file=sys.stderr)
        while (line := _line()) not in ("", "/exit"):
            messages.append({"role": "user", "content": line})
            answer = _answer(source, messages, params)
            messages.append({"role": "assistant", "content": answer})
    return 0


def _answer(source: Source, messages: list[dict[str, str]], params: SamplingParams) -> str:
    """Show an answer as it comes; Ctrl-C keeps what there is."""
    text = ""
    outputs = source.stream(source.chat_prompt(messages), params)
    try:
        for output in outputs:
            text += output.outputs[0].text
            print(output.outputs[0].text, end="", flush=True)
    except KeyboardInterrupt:
        outputs.close()  # pyright: ignore[reportAttributeAccessIssue]  # aborts the request
    print()
    return text


def _show(outputs: Iterator[RequestOutput], prompt: str, *, as_json: bool) -> None:
    texts: dict[int, str] = {}
    reasons: dict[int, str | None] = {}
    for output in outputs:
        for part in output.outputs:
            texts[part.index] = texts.get(part.index, "") + part.text
            reasons[part.index] = part.finish_reason
            if not as_json and part.index == 0:
                print(part.text, end="", flush=True)
    if as_json:
        ends = [{"text": texts[i], "finish_reason": reasons[i]} for i in sorted(texts)]
        print(json.dumps({"prompt": prompt, "outputs": ends}), flush=True)
        return
    print()
    for index in sorted(texts)[1:]:
        print(f"--- {index + 1}\n{texts[index]}")


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return ""


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a folder, rtp-tiny, or a name org/model")
    parser.add_argument("--server", metavar="HOST:PORT", help="ask this server; load nothing")
    parser.add_argument("--token-file", metavar="FILE", help="its first line is the bearer token")
    parser.add_argument("--tls-ca", metavar="FILE", help="PEM of who signed the server's name")
    add_sampling(parser)
    add_settings(parser, server=False)


def _source(parsed: argparse.Namespace, reuse: Reuse = EVERY_TIER) -> Source:
    if parsed.server is None:
        if parsed.token_file or parsed.tls_ca:
            raise InvalidArgument(
                "RTPJ-1204 SERVER_NOT_GIVEN: --token-file and --tls-ca are for a server, and none"
                " was named. Add --server HOST:PORT.",
                field="server",
            )
        settings = settings_of(parsed)
        engine = start_engine(settings, lambda line: print(line, file=sys.stderr, flush=True))
        return Source(
            engine,
            lambda prompt, params: engine.stream(_with_reuse(prompt, reuse), params),
            engine.chat_prompt,
        )
    token = read_tokens(parsed.token_file)[0] if parsed.token_file else None
    client = Client(
        parsed.server, token=token, tls=Tls(ca=parsed.tls_ca) if parsed.tls_ca else None
    )
    options = RequestOptions(model=parsed.model, reuse=None if reuse == EVERY_TIER else reuse)
    return Source(
        client,
        lambda prompt, params: client.stream(prompt, params, options),
        lambda messages: {"messages": messages},
    )


def _with_reuse(prompt: object, reuse: Reuse) -> object:
    """Spell a prompt, text or ids, with the tiers that it may use."""
    key = "prompt" if isinstance(prompt, str) else "prompt_token_ids"
    return prompt if reuse == EVERY_TIER else {key: prompt, "reuse": reuse}
