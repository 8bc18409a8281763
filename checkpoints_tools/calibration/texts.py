"""Which sequences of tokens does a model read while it is quantized?  From a file of text or JSONL.

A text file is one document.  In JSONL each line is an object with `text`, or with `messages`, which
the model's chat template turns into text.  Documents are cut into sequences; if these have more
tokens than are wanted, sequences are taken evenly from all over the file.

Read next: `steps.py`.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints_tools.quantize import LEAST_TOKENS
from checkpoints_tools.text_quality import as_text, text_bytes
from rtp_jax.errors import InvalidArgument, RtpError
from rtp_jax.text.chat import choose_template, load_chat_templates, render_chat
from rtp_jax.text.tokenizer import Tokenizer, load_tokenizer
from rtp_jax.weights.files import parse_object

JSON_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where the text is, and how much of it is read."""

    path: Path
    tokens: int  # at most
    length: int  # of a sequence, at most


@dataclass(frozen=True, slots=True)
class Texts:
    """What is read, and what it was made from."""

    sequences: list[list[int]]
    sha256: str  # of the file

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))


def read_texts(folder: Path, wanted: Wanted, *, vocab_size: int) -> Texts:
    """Read a file and encode it with the tokenizer of a model.

    Raises:
      InvalidArgument: RTPJ-3633, the file holds no text, or too little.
      CheckpointError: RTPJ-3635 and RTPJ-3619, it cannot be read, or is not UTF-8.
    """
    data = text_bytes(wanted.path)
    tokenizer = load_tokenizer(folder)
    sequences = [
        ids[start : start + wanted.length]
        for ids in _documents(folder, wanted.path, data, tokenizer)
        for start in range(0, len(ids), wanted.length)
    ]
    total = sum(map(len, sequences))
    if total < LEAST_TOKENS:
        raise _invalid(wanted.path, f"it has {total} tokens, at least {LEAST_TOKENS} are needed")
    largest = max(max(ids) for ids in sequences)
    if largest >= vocab_size:
        raise _invalid(
            wanted.path, f"the tokenizer makes token {largest} of it and the model has {vocab_size}"
        )
    return Texts(_evenly(sequences, wanted.tokens), hashlib.sha256(data).hexdigest())


def _documents(folder: Path, path: Path, data: bytes, tokenizer: Tokenizer) -> Iterator[list[int]]:
    if path.suffix.lower() not in JSON_LINES:
        yield tokenizer.encode(as_text(path, data), allow_special=False)
        return
    chat = _Chat(folder, tokenizer)
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            yield chat.encoded(path, number, line)


class _Chat:
    """Turns a line into tokens; reads the chat template when one is needed."""

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self._folder, self._tokenizer = folder, tokenizer
        self._template: Any = None

    def encoded(self, path: Path, number: int, line: bytes) -> list[int]:
        try:
            fields = parse_object(line, f"{path}, line {number},")
            match fields:
                case {"text": str(text)}:
                    return self._tokenizer.encode(text, allow_special=False)
                case {"messages": list(messages)}:
                    return self._conversation(messages)
        except RtpError as reason:
            raise _invalid(path, f"line {number}: {reason}") from None
        raise _invalid(path, f"line {number} has neither a string `text` nor a list `messages`")

    def _conversation(self, messages: list[Any]) -> list[int]:
        if self._template is None:
            self._template = choose_template(load_chat_templates(self._folder))
        tokens = self._tokenizer
        text = render_chat(
            self._template,
            messages,
            add_generation_prompt=False,
            bos_token=tokens.bos_token,
            eos_token=tokens.eos_token,
        )
        return tokens.encode(text, add_special_tokens=False)


def _evenly(sequences: list[list[int]], tokens: int) -> list[list[int]]:
    """Take sequences evenly spread until there are enough tokens; the last one is cut."""
    total = sum(map(len, sequences))
    if total <= tokens:
        return sequences
    step = total / tokens
    chosen, before, due = [], 0, 0.0
    for ids in sequences:
        before += len(ids)
        if before > due:
            chosen.append(ids)
            due += step * len(ids)
    left, taken = tokens, []
    for ids in chosen:
        if left <= 0:
            break
        taken.append(ids[:left])
        left -= len(taken[-1])
    return taken


def _invalid(path: Path, reason: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-3633 CALIBRATION_FILE_INVALID: {path}: {reason}. Give a text file, or JSONL whose"
        " lines have `text` or `messages`.",
        field="calibration",
    )
