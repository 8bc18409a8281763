"""How does text appear while its tokens are still being generated?

A token may hold part of a character, so text trails the tokens by up to three bytes.  Where a
token always stands for the same bytes (`Tokenizer.joins_bytes`: byte-level BPE, sentencepiece),
the bytes go through an incremental UTF-8 decoder.  For any other decoder a short window of tokens
is decoded twice, with and without the new one, and the difference is the new text.
Both cost the same for every token, however long the text.  Read `stop.py` next.
"""

import codecs
from collections.abc import Iterable, Sequence
from typing import Protocol

from rtp_jax.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"  # what an unfinished character decodes to
CONTEXT = 6  # tokens of the prompt that the window starts with
MAX_WAITING = 16  # tokens without text after which U+FFFD is taken to be meant


class _Stream(Protocol):
    def push(self, ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class Detokenizer:
    """The text of one completion; the concatenation of all that it returns is the whole text."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ):
        self._hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        context = _last_visible(tokenizer, prompt_ids, self._hidden)
        self._stream: _Stream = (
            _ByteStream(tokenizer, context)
            if tokenizer.joins_bytes
            else _WindowStream(tokenizer, context, spaces_between_special_tokens)
        )

    def push(self, ids: Iterable[int]) -> str:
        """Take new tokens and return the text that is certain by now."""
        return self._stream.push([id for id in ids if id not in self._hidden])

    def finish(self) -> str:
        """Return what is left: U+FFFD if the last character never became complete."""
        return self._stream.finish()


class _ByteStream:
    """Every token is some bytes: decode them as they come."""

    def __init__(self, tokenizer: Tokenizer, context: list[int]):
        self._bytes_of = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        before = b"".join(map(self._bytes_of, context))
        self._decoder.decode(before)  # the prompt may end within a character
        self._at_start = tokenizer.strips_leading_space and not before

    def push(self, ids: list[int]) -> str:
        content = b"".join(map(self._bytes_of, ids))
        if self._at_start and content:
            self._at_start = False
            content = content.removeprefix(b" ")
        return self._decoder.decode(content)

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Decode a window of tokens: those whose text is out, for context, and those waiting."""

    def __init__(self, tokenizer: Tokenizer, context: list[int], spaces_between: bool):
        self._tokenizer = tokenizer
        self._spaces_between = spaces_between
        self._window = context
        self._num_out = len(context)  # how many tokens of the window have their text out
        self._text_out = self._decode(context)

    def push(self, ids: list[int]) -> str:
        return "".join(map(self._push, ids))

    def _push(self, id: int) -> str:
        self._window.append(id)
        text = self._decode(self._window)
        waiting = len(self._window) - self._num_out
        whole = not text.endswith(REPLACEMENT) and len(text) > len(self._text_out)
        return self._release(text) if whole or waiting > MAX_WAITING else ""

    def finish(self) -> str:
        return self._release(self._decode(self._window))

    def _release(self, text: str) -> str:
        new = text[len(self._text_out) :]
        del self._window[: self._num_out]
        self._num_out = len(self._window)
        self._text_out = self._decode(self._window)
        return new

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids,
            skip_special_tokens=False,  # the skipped ones never get here
            spaces_between_special_tokens=self._spaces_between,
        )


def _last_visible(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], hidden: frozenset[int]
) -> list[int]:
    """Give the last tokens of the prompt that have text: enough to hold a character."""
    found: list[int] = []
    for id in reversed(prompt_ids):
        if id not in hidden and tokenizer.token_bytes(id):
            found.append(id)
            if len(found) == CONTEXT:
                break
    return found[::-1]
