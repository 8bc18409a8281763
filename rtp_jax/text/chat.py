"""How does a conversation become the prompt that a model was trained on?

A checkpoint brings a Jinja template that writes messages with its special tokens, alone in
`chat_template.jinja` or inside `tokenizer_config.json`.  It is a stranger's program, so it runs in
the sandbox of `sandbox.py`; what it is given is checked by `messages.py`.
"""

import datetime
import functools
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from rtp_jax.errors import CheckpointError, FailedPrecondition, InvalidArgument
from rtp_jax.text import sandbox
from rtp_jax.text.messages import checked_data, checked_messages
from rtp_jax.text.sandbox import Limits
from rtp_jax.text.template_cost import LimitReached
from rtp_jax.text.tokenizer import Tokenizer
from rtp_jax.text.tokenizer_files import corrupt, read_checked, read_json

MAX_TEMPLATE_CHARS = 1 << 18  # the longest known has 30 000
RESERVED = {"messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token"}
RESERVED |= {"eos_token", "template", "chat_template", "tokenize"}
# What running a template raises when template and messages do not fit together.
FAILURES = (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError)
FAILURES += (AttributeError, RuntimeError, MemoryError, SyntaxError)


@dataclass(frozen=True)
class ChatTemplate:
    """A template, compiled when it is first used."""

    name: str
    source: str = field(repr=False)
    now: Callable[[], datetime.datetime] = datetime.datetime.now
    limits: Limits = field(default_factory=Limits)

    @functools.cached_property
    def program(self) -> jinja2.Template:
        """Compile the template, or say why it is none."""
        if len(self.source) > MAX_TEMPLATE_CHARS:
            raise CheckpointError(
                f"RTPJ-3402 CHAT_TEMPLATE_BROKEN: the chat template {self.name!r} has "
                f"{len(self.source)} characters, {MAX_TEMPLATE_CHARS} are allowed."
            )
        try:
            return sandbox.compile_template(self.source, now=self.now)
        except FAILURES as error:
            raise CheckpointError(
                f"RTPJ-3402 CHAT_TEMPLATE_BROKEN: the chat template {self.name!r} does not "
                f"compile: {_reason(error)}. Replace chat_template.jinja by a working one."
            ) from None


def load_chat_templates(folder: Path) -> dict[str, ChatTemplate]:
    """Read the chat templates of a checkpoint folder by name; most have one, `default`."""
    sources = dict(_listed_templates(folder / "tokenizer_config.json"))
    single = folder / "chat_template.jinja"
    more = folder / "additional_chat_templates"
    files = {"default": single} if single.exists() else {}
    files |= {path.stem: path for path in sorted(more.glob("*.jinja"))}
    for name, path in files.items():
        try:
            sources[name] = read_checked(path, max_bytes=4 * MAX_TEMPLATE_CHARS).decode("utf-8")
        except UnicodeDecodeError as error:
            raise corrupt(path, str(error)) from None
    return {name: ChatTemplate(name, source) for name, source in sources.items()}


def choose_template(
    templates: Mapping[str, ChatTemplate], *, name: str | None = None, tools: bool = False
) -> ChatTemplate:
    """Pick a template by name, else `tool_use` for tools, else `default`."""
    wanted = name or ("tool_use" if tools and "tool_use" in templates else "default")
    if wanted in templates:
        return templates[wanted]
    have = f"It has {', '.join(sorted(templates))}" if templates else "It has none"
    raise FailedPrecondition(
        f"RTPJ-3401 CHAT_TEMPLATE_MISSING: this model has no chat template {wanted!r}. {have}. "
        "Pass a prompt to generate() instead, or put chat_template.jinja into the model's folder."
    )


def render_chat(
    template: ChatTemplate,
    messages: Iterable[Mapping[str, Any]],
    /,
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    tools: list[dict[str, Any]] | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    **template_kwargs: Any,
) -> str:
    """Write a conversation as a prompt; encode it with `add_special_tokens=False`.

    Args:
      template: from `choose_template`.
      messages: `{"role": ..., "content": ...}`; content is a string or a list of text parts.
      add_generation_prompt: end with what opens an answer of the assistant.
      continue_final_message: end within the last message, for the model to go on with it.
      tools: JSON schemas of functions, for templates that know them.
      bos_token: spelled by most templates at the beginning; as eos_token, from the tokenizer.
      template_kwargs: variables of this template, for example `enable_thinking`.  Where they come
        from a client, call `check_template_kwargs` before.
    """
    check_template_kwargs(template_kwargs)
    if add_generation_prompt and continue_final_message:
        raise InvalidArgument(
            "RTPJ-3406 CHAT_FLAGS_CONFLICT: add_generation_prompt=True opens a new message and "
            "continue_final_message=True goes on with the last one. Set one of them to False.",
            field="continue_final_message",
        )
    checked = checked_messages(messages)
    marker = _mark_end(checked[-1], len(checked) - 1) if continue_final_message else ""
    variables = checked_data(template_kwargs, "template_kwargs") | {
        "messages": checked,
        "tools": checked_data(tools, "tools"),
        "add_generation_prompt": add_generation_prompt,
        "bos_token": bos_token or "",
        "eos_token": eos_token or "",
    }
    text = _render(template, variables)
    return _cut_at(text, marker, template.name) if marker else text


def conversation_text(
    templates: Mapping[str, ChatTemplate],
    tokenizer: Tokenizer,
    messages: Iterable[Mapping[str, Any]],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    template_kwargs: Mapping[str, Any],
) -> str:
    """Write a client's conversation by a model's own template; its options are checked."""
    check_template_kwargs(template_kwargs)
    return render_chat(
        choose_template(templates),
        messages,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        **template_kwargs,
    )


def check_template_kwargs(template_kwargs: Mapping[str, Any]) -> None:
    """Refuse variables that are not a client's to set."""
    if taken := sorted(RESERVED & template_kwargs.keys()):
        raise InvalidArgument(
            f"RTPJ-3409 CHAT_OPTION_RESERVED: chat_template_kwargs sets {', '.join(taken)}, which "
            "is not a variable of the template. Leave it out, or use the option of that name.",
            field="chat_template_kwargs",
        )


def _render(template: ChatTemplate, variables: dict[str, Any]) -> str:
    program = template.program
    try:
        return sandbox.render(program, variables, template.limits)
    except sandbox.Refusal as error:
        raise InvalidArgument(
            f"RTPJ-3404 CHAT_REFUSED_BY_TEMPLATE: the chat template says: {_reason(error)}. "
            "Change the messages as it asks.",
            field="messages",
        ) from None
    except LimitReached as error:
        raise InvalidArgument(
            f"RTPJ-3408 CHAT_TEMPLATE_LIMIT: the chat template {template.name!r} was stopped: "
            f"{error}. Shorten the messages, or use another template.",
            field="messages",
        ) from None
    except FAILURES as error:
        raise InvalidArgument(
            f"RTPJ-3405 CHAT_TEMPLATE_FAILED: the chat template {template.name!r} failed on these "
            f"messages: {_reason(error)}. Check roles and fields against the model's examples.",
            field="messages",
        ) from None


def _mark_end(message: dict[str, Any], index: int) -> str:
    """Put a word that nobody can guess behind the text that is to be continued."""
    if not isinstance(message["content"], str):
        raise InvalidArgument(
            f"RTPJ-3403 CHAT_MESSAGE_INVALID: messages[{index}].content is empty, and "
            "continue_final_message=True needs a text to continue. Give it one.",
            field=f"messages[{index}].content",
        )
    marker = f"end{secrets.token_hex(16)}"
    message["content"] += f"{marker} "
    return marker


def _cut_at(text: str, marker: str, name: str) -> str:
    before, found, after = text.rpartition(marker)
    if not found:
        raise InvalidArgument(
            f"RTPJ-3405 CHAT_TEMPLATE_FAILED: the chat template {name!r} does not write the final "
            "message as it is, so it cannot be continued. Use add_generation_prompt=True.",
            field="continue_final_message",
        )
    # A template that trims messages took the space behind the marker, and means to trim before it.
    return before if after.startswith(" ") else before.rstrip()


def _listed_templates(path: Path) -> Iterable[tuple[str, str]]:
    value = read_json(path).get("chat_template")
    if value is None:
        return
    listed = [{"name": "default", "template": value}] if isinstance(value, str) else value
    for item in listed if isinstance(listed, list) else [None]:
        pair = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
        if not all(isinstance(part, str) for part in pair):
            raise corrupt(path, "chat_template is neither a string nor a list of named ones")
        yield pair[0], pair[1]  # pyright: ignore[reportReturnType]


def _reason(error: BaseException) -> str:
    """Say what a library said, in one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
