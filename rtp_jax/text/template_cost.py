"""What does one step of a template cost, and who stops it in time?

Characters are paid for before they are made wherever a small expression can make many: each check
below takes what an operation is about to be given, pays, and returns the arguments to use.
`sandbox.py` calls them.
"""

import re
import time
from typing import Any

import jinja2

MAX_BITS = 8192  # of a whole number; Python refuses to print those above 14 000
MAX_DEPTH = 100  # of lists in lists
MAX_INDENT = 16
CONTAINER_CHARS = 16  # what a list or a number may add: brackets, commas, digits
WIDE_FORMAT = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")  # a width from outside, or of four digits


class LimitReached(Exception):
    """A render has used up one of its limits."""


class Budget:
    """What one render has left."""

    def __init__(self, steps: int, chars: int, deadline: float):
        self._steps = steps
        self._chars = chars
        self._deadline = deadline  # on the clock of this thread's processor time

    def step(self) -> None:
        """Pay for one step."""
        self._steps -= 1
        if self._steps < 0:
            raise LimitReached("it takes too many steps")
        if time.thread_time() > self._deadline:
            raise LimitReached("it takes too long")

    def charge(self, num_chars: int) -> None:
        """Pay for characters or items that are about to exist."""
        self._chars -= num_chars
        if self._chars < 0:
            raise LimitReached("it makes too many characters on the way")


def size(value: Any) -> int:
    """Say how much memory a value takes by itself, in characters or items."""
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def pay_text(budget: Budget, value: Any, *, indent: int = 0) -> None:
    """Pay for writing a value; a list may hold the same list often, so its text may be long."""
    stack = [(value, 0)]
    while stack:
        item, depth = stack.pop()
        budget.charge(size(item) + CONTAINER_CHARS + indent * depth)
        if item is None or isinstance(item, str | int | float | jinja2.Undefined):
            continue
        if not isinstance(item, list | tuple | dict):
            raise LimitReached(f"it writes a {type(item).__name__}, which has no text")
        if depth == MAX_DEPTH:
            raise LimitReached(f"it writes lists nested more than {MAX_DEPTH} deep")
        budget.step()
        children = [*item, *item.values()] if isinstance(item, dict) else item
        stack.extend((child, depth + 1) for child in children)


def pay_comparison(budget: Budget, *values: Any) -> None:
    """Pay for comparing or hashing values, which goes as deep as writing them."""
    for value in values:
        if isinstance(value, list | tuple | dict):
            pay_text(budget, value)


def before_operator(budget: Budget, operator: str, left: Any, right: Any) -> None:
    """Pay for `+`, `*`, `**` or `%`."""
    whole = isinstance(left, int) and isinstance(right, int)
    if operator == "+":
        budget.charge(size(left) + size(right))
    elif operator == "*" and whole:
        _check_bits(left.bit_length() + right.bit_length())
    elif operator == "*" and isinstance(right, int):
        budget.charge(size(left) * max(right, 0))
    elif operator == "*" and isinstance(left, int):
        budget.charge(size(right) * max(left, 0))
    elif operator == "**" and whole:
        _check_bits(left.bit_length() * abs(right))
    elif operator == "%" and isinstance(left, str):
        if WIDE_FORMAT.search(left):
            raise LimitReached("it formats with a width above 999")
        pay_text(budget, right)


def before_method(budget: Budget, text: str, name: str, args: tuple) -> tuple:
    """Pay for a method of a string; give the arguments to call it with."""
    if name == "join" and len(args) == 1:
        items = list(args[0])
        budget.charge(sum(map(size, items)) + len(text) * len(items))
        return (items,)
    if name == "replace":
        _pay_replace(budget, text, *args)
    return args


def before_filter(budget: Budget, name: str, value: Any, args: tuple, kwargs: dict) -> Any:
    """Pay for a filter; return the value to filter."""
    pay_comparison(budget, *args, *kwargs.values())
    if name in ("sort", "unique", "min", "max", "dictsort"):
        value = value if isinstance(value, dict) else list(value)
        pay_comparison(budget, value)
    if name in ("join", "sum"):
        items = list(value)
        total = sum(map(size, items))
        separator = args[0] if args else kwargs.get("d", "")
        budget.charge(len(items) * (total if name == "sum" else len(str(separator))))
        if name == "join":
            pay_text(budget, items)
        return items
    if name in WRITERS.split() and not isinstance(value, str):
        pay_text(budget, value, indent=MAX_INDENT if name == "tojson" else 0)
    if name == "format":
        before_operator(budget, "%", str(value), [*args, *kwargs.values()])
    if name == "round":
        precision = args[0] if args else kwargs.get("precision", 0)
        _check_bits(4 * abs(int(precision)))  # a power of ten
    if name == "replace":
        given = dict(zip(("old", "new", "count"), args, strict=False)) | kwargs
        _pay_replace(budget, str(value), str(given["old"]), str(given["new"]))
    if name == "indent":
        width = args[0] if args else kwargs.get("width", 4)
        columns = len(width) if isinstance(width, str) else int(width)
        budget.charge((str(value).count("\n") + 1) * max(columns, 0))
    return value


# Filters that write what they are given as text.
WRITERS = """capitalize e escape float format indent int lower replace string title tojson trim
    truncate upper"""


def _pay_replace(budget: Budget, text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        budget.charge(len(text) + text.count(old) * len(new))


def _check_bits(bits: int) -> None:
    if bits > MAX_BITS:
        raise LimitReached(f"it makes a number of {bits} bits")
