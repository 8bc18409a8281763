"""Which modules of a checkpoint are quantized, and how?  Rules over their names, as plain data.

Names are those of the checkpoint, such as `model.layers.3.self_attn.q_proj`.  Patterns come from a
stranger's config.json, so only those are taken whose search ends soon, whatever the name.

Read next: `quantized.py` for what a format is.
"""

import re
from dataclasses import dataclass

from rtp_jax.weights.matrix_format import MatrixFormat

MAX_PATTERN = 300  # characters
MAX_REPEATS = 3  # the search takes len(name) ** MAX_REPEATS steps at most
_SIMPLE = re.compile(r"(?:[\w^$|()?:\- ]|\\[.dw\-_]|\[[\w\-]+\]|\.[*+]?|(?<=\])[*+]|(?<=d)\+)*")


@dataclass(frozen=True, slots=True)
class Names:
    """Some modules: a name is among them if any of these says so."""

    every: bool = False
    exact: tuple[str, ...] = ()
    within: tuple[str, ...] = ()  # words of the name between dots, one or several in a row
    patterns: tuple[str, ...] = ()  # regular expressions, from the start of the name

    def has(self, name: str) -> bool:
        """Whether a module is among them."""
        return (
            self.every
            or name in self.exact
            or any(f".{part}." in f".{name}." for part in self.within)
            or any(re.match(pattern, name) for pattern in self.patterns)
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """Some modules and their format."""

    names: Names
    kind: MatrixFormat


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint's config says of its linear maps: the first rule that names one decides."""

    method: str
    rules: tuple[Rule, ...]
    ignored: Names = Names()
    with_head: bool = False  # rules are about the head of the model, too

    def format_of(self, module: str, *, is_head: bool) -> MatrixFormat | None:
        """Give the format of a module's matrix; None: it is not quantized."""
        if (is_head and not self.with_head) or self.ignored.has(module):
            return None
        return next((rule.kind for rule in self.rules if rule.names.has(module)), None)


def is_simple(pattern: str) -> bool:
    """Whether a search for a pattern ends soon: few repeats, and none of them within another."""
    repeats = pattern.count("*") + pattern.count("+")
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or not _SIMPLE.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
