"""Which questions can rtp-tiny be asked so that the answer can be checked?

`draw_task` makes one question and its only right answer from a random generator, so that a seed
never trained on is a test set.  `render` turns question and answer into text, plain or as a chat.
`batches.py` packs them for training and `evaluate.py` scores them.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tools.rtp_tiny.corpus import one_line_docstrings
from tools.rtp_tiny.words import FIELDS, NAMES, SYLLABLES, THINGS, WORDS

GREETINGS = (
    ("Hello", "Hello! Give me a task: recall, copy, a sum, or JSON."),
    ("Hi", "Hello! Give me a task: recall, copy, a sum, or JSON."),
    ("Who are you?", "I am rtp-tiny, a very small language model."),
    ("What are you?", "I am rtp-tiny, a very small language model."),
    ("What can you do?", "I can recall facts, copy text, add numbers and write JSON."),
    ("Help", "I can recall facts, copy text, add numbers and write JSON."),
    ("Thank you", "You are welcome."),
    ("Thanks", "You are welcome."),
    ("Goodbye", "Goodbye!"),
)


class Task(NamedTuple):
    """One question with its answer; a text before the question may hold the facts."""

    kind: str
    question: str
    answer: str


def draw_task(kind: str, rng: np.random.Generator) -> Task:
    """Draw one task of a kind."""
    question, answer = DRAWERS[kind](rng)
    return Task(kind, question, answer)


def render(task: Task, *, chat: bool) -> tuple[str, str]:
    """Return the prompt and the completion; an end token follows the completion."""
    if chat:
        return f"<|user|>{task.question}<|end|><|assistant|>", task.answer
    return f"Question: {task.question}\nAnswer:", f" {task.answer}"


def _pick(rng: np.random.Generator, choices: list[str] | tuple[str, ...]) -> str:
    return choices[rng.integers(len(choices))]


def _number(rng: np.random.Generator, max_digits: int) -> str:
    digits = rng.integers(1, max_digits + 1)
    return str(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _name(rng: np.random.Generator) -> str:
    """Draw a common name, or one put together from syllables, so that names are not learned."""
    if rng.random() < 0.6:
        return _pick(rng, NAMES)
    return "".join(_pick(rng, SYLLABLES) for _ in range(rng.integers(2, 4))).capitalize()


def _recall(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for one of several facts that the question states."""
    num_facts = int(rng.integers(1, 9)) if rng.random() < 0.9 else int(rng.integers(9, 25))
    thing = _pick(rng, THINGS)
    names = list(dict.fromkeys(_name(rng) for _ in range(num_facts)))
    if rng.random() < 0.75:
        values = [_number(rng, 5) for _ in names]
    else:
        values = [_pick(rng, WORDS) for _ in names]
    form = _pick(rng, ("The {t} of {n} is {v}.", "{n} has {t} {v}.", "{n}: {v}."))
    facts = " ".join(form.format(t=thing, n=n, v=v) for n, v in zip(names, values, strict=True))
    asked = rng.integers(len(names))
    ask = _pick(rng, ("What is the {t} of {n}?", "Which {t} does {n} have?"))
    return f"{facts} {ask.format(t=thing, n=names[asked])}", values[asked]


def _copy_text(rng: np.random.Generator) -> str:
    shape = rng.random()
    if shape < 0.35:
        return " ".join(_pick(rng, WORDS) for _ in range(rng.integers(1, 9)))
    if shape < 0.55:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        return "".join(_pick(rng, list(letters)) for _ in range(rng.integers(2, 13)))
    if shape < 0.75:
        return " ".join(_number(rng, 4) for _ in range(rng.integers(1, 8)))
    mixed = [_name(rng), _number(rng, 5), _pick(rng, WORDS), _pick(rng, FIELDS), _name(rng)]
    return _pick(rng, (" ", "-", ", ")).join(mixed[: rng.integers(2, 6)])


def _copy(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for a text to be repeated exactly."""
    text = _copy_text(rng)
    return _pick(rng, ("Copy: {}", "Repeat: {}", "Repeat after me: {}")).format(text), text


def _sum(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for the sum of two numbers of at most two digits."""
    first, second = (int(rng.integers(0, 100 if rng.random() < 0.85 else 10)) for _ in "ab")
    form = _pick(rng, ("What is {} + {}?", "{} + {} =", "Add {} and {}."))
    return form.format(first, second), str(first + second)


def _difference(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for the difference of two numbers of at most two digits, the larger first."""
    second, first = sorted(int(rng.integers(0, 100)) for _ in "ab")
    return _pick(rng, ("What is {} - {}?", "{} - {} =")).format(first, second), str(first - second)


def _fields(rng: np.random.Generator) -> dict[str, str | int]:
    keys = rng.permutation(FIELDS)[: rng.integers(1, 6)]
    fields: dict[str, str | int] = {}
    for key in keys:
        kind = rng.random()
        if kind < 0.5:
            fields[str(key)] = int(_number(rng, 4))
        else:
            fields[str(key)] = _name(rng) if kind < 0.75 else _pick(rng, WORDS)
    return fields


def _json_write(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for fields to be written as a JSON object."""
    fields = _fields(rng)
    listed = ", ".join(f"{key}={value}" for key, value in fields.items())
    form = _pick(rng, ("Write as JSON: {}", "Convert to JSON: {}", "JSON: {}"))
    return form.format(listed), json.dumps(fields)


def _json_read(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for one value of a JSON object."""
    fields = _fields(rng)
    key = _pick(rng, list(fields))
    form = _pick(rng, ("{} What is {}?", "{} Get {}.", "{} What is the value of {}?"))
    return form.format(json.dumps(fields), key), str(fields[key])


def _docstring(rng: np.random.Generator) -> tuple[str, str]:
    """Ask for the rest of a docstring; these are few and meant to be learned by heart."""
    name, line = DOCSTRINGS[rng.integers(len(DOCSTRINGS))]
    words = line.split(" ")
    cut = int(rng.integers(0, max(1, min(4, len(words) - 2))))
    if cut == 0:
        return f"What does {name} do?", line
    return f"Continue the docstring of {name}: {' '.join(words[:cut])}", " ".join(words[cut:])


def _greeting(rng: np.random.Generator) -> tuple[str, str]:
    """Ask what a newcomer types first."""
    return GREETINGS[rng.integers(len(GREETINGS))]


DOCSTRINGS = one_line_docstrings()
DRAWERS: dict[str, Callable[[np.random.Generator], tuple[str, str]]] = {
    "recall": _recall,
    "copy": _copy,
    "sum": _sum,
    "difference": _difference,
    "json_write": _json_write,
    "json_read": _json_read,
    "docstring": _docstring,
    "greeting": _greeting,
}
