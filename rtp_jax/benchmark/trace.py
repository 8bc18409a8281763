"""Requests from a file: one JSON object a line, lengths and arrivals of a real service.

| field | meaning |
|---|---|
| `input_length` | tokens of the prompt; ids are made up |
| `hash_ids` | with it: one id for each 512 tokens; equal ids at equal places, equal tokens |
| `prompt_token_ids`, `prompt` | instead of both: the prompt itself, as ids or as text |
| `output_length` | tokens to generate; else what the workload says |
| `timestamp` | when it arrives, ms from the start |

The first two, with the last two, are the format of the traces published with Mooncake (FAST 2025),
which hold no text.  A trace is scaled to a machine by `length_scale` (a block of 512 tokens becomes
16, say, so that equal prefixes stay equal) and by `time_scale`.
"""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rtp_jax.errors import InvalidArgument

BLOCK_TOKENS = 512  # of the prompt that one of `hash_ids` stands for
MAX_LINE_CHARS = 16 << 20
MAX_LENGTH = 1 << 24


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of a trace, before its token ids are made up; lengths are scaled."""

    num_prompt_tokens: int | None  # None: the prompt is here
    hash_ids: tuple[int, ...]
    prompt: tuple[int, ...] | str | None
    num_output_tokens: int | None
    at_s: float | None  # scaled


@dataclass(frozen=True, slots=True)
class Trace:
    """The first requests of a file."""

    lines: tuple[TraceLine, ...]
    block_tokens: int  # scaled

    @property
    def timed(self) -> bool:
        """True if every request says when it arrives."""
        return all(line.at_s is not None for line in self.lines)

    @property
    def has_prompts(self) -> bool:
        """True if a prompt is spelled out, so that every draw of it has the same ids."""
        return any(line.prompt is not None for line in self.lines)

    @property
    def has_text(self) -> bool:
        """True if a prompt is text, which somebody must tokenize."""
        return any(isinstance(line.prompt, str) for line in self.lines)

    def prompts(self, vocab_size: int, seed: tuple[int, ...]) -> Iterator[tuple[int, ...] | str]:
        """Make the prompts up, from a seed; the same seed gives the same ids."""
        block_of: dict[int, np.ndarray] = {}
        tails = np.random.default_rng((*seed, 0))
        for line in self.lines:
            if line.prompt is not None:
                yield line.prompt
                continue
            size = line.num_prompt_tokens or 0
            for hash_id in line.hash_ids:
                if hash_id not in block_of:
                    rng = np.random.default_rng((*seed, 1, hash_id))
                    block_of[hash_id] = rng.integers(0, vocab_size, self.block_tokens)
            # Scaled lengths are rounded one by one: what is missing is tokens of this prompt alone.
            missing = max(0, size - self.block_tokens * len(line.hash_ids))
            parts = [block_of[hash_id] for hash_id in line.hash_ids]
            parts.append(tails.integers(0, vocab_size, missing))
            yield tuple(np.concatenate(parts)[:size].tolist())


def read_trace(path: str, *, most: int | None, length_scale: float, time_scale: float) -> Trace:
    """Read the first requests of a file.

    Args:
      path: JSON lines.
      most: how many to read; None: all.
      length_scale: tokens here for each token of the trace; prompts that are spelled out stay.
      time_scale: seconds here for each second of the trace.

    Raises:
      InvalidArgument: the file cannot be read, or a line is not as above.
    """
    lines = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, text in enumerate(itertools.islice(file, most), 1):
                try:
                    lines.append(_line(text, length_scale, time_scale))
                except (ValueError, RecursionError) as error:
                    raise _invalid(f"line {number} of {path}", str(error)) from error
    except OSError as error:
        raise _invalid(path, f"it cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise _invalid(path, "it is not UTF-8") from error
    if not lines:
        raise _invalid(path, "it is empty")
    return Trace(tuple(lines), max(1, round(BLOCK_TOKENS * length_scale)))


def _line(text: str, length_scale: float, time_scale: float) -> TraceLine:
    if len(text) > MAX_LINE_CHARS:
        raise ValueError(f"it has more than {MAX_LINE_CHARS} characters")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it is no JSON object")
    given = [name for name in ("prompt", "prompt_token_ids", "input_length") if name in fields]
    if len(given) != 1:
        raise ValueError("it has not just one of prompt, prompt_token_ids and input_length")
    length, output = _length(fields, "input_length"), _length(fields, "output_length")
    at = fields.get("timestamp")
    if at is not None and (not isinstance(at, int | float) or not 0 <= at < 1e12):
        raise ValueError(f"timestamp={at!r} is no number of milliseconds")
    return TraceLine(
        None if length is None else max(1, round(length * length_scale)),
        _ids(fields, "hash_ids") if length is not None else (),
        _prompt(fields),
        None if output is None else max(1, round(output * length_scale)),
        None if at is None else at / 1000 * time_scale,
    )


def _prompt(fields: dict) -> tuple[int, ...] | str | None:
    if "prompt_token_ids" in fields:
        if not (ids := _ids(fields, "prompt_token_ids")):
            raise ValueError("prompt_token_ids is empty")
        if max(ids) >= 1 << 31:
            raise ValueError(f"prompt_token_ids has {max(ids)}, which is no token id")
        return ids
    text = fields.get("prompt")
    if text is not None and (not isinstance(text, str) or not text):
        raise ValueError("prompt is no text")
    if text is not None:
        text.encode()  # a lone surrogate cannot be sent
    return text


def _length(fields: dict, name: str) -> int | None:
    value = fields.get(name)
    if name in fields and (type(value) is not int or not 1 <= value <= MAX_LENGTH):
        raise ValueError(f"{name}={value!r} is no number of tokens")
    return value


def _ids(fields: dict, name: str) -> tuple[int, ...]:
    ids = fields.get(name, [])
    if not isinstance(ids, list) or any(type(id) is not int or id < 0 for id in ids):
        raise ValueError(f"{name} is no list of ids")
    return tuple(ids)


def _invalid(where: str, what: str) -> InvalidArgument:
    return InvalidArgument(
        f"RTPJ-5503 TRACE_INVALID: {where}: {what}. Write one JSON object a line, with"
        " input_length, prompt_token_ids or prompt; docs/benchmarks.md has the fields.",
        field="trace",
    )
