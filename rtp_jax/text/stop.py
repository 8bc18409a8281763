"""Where does a completion end, if it ends at a string?

A stop string may be split over many tokens, and text that was sent cannot be taken back.  So text
is held back exactly while it could still become a stop string.  All stop strings are searched at
once, a character at a time, by the automaton of Aho and Corasick: its state is the longest end of
the text that begins a stop string, which is both the search and the length to hold back.
The answer does not depend on how the text was cut into pushes.  Read `assembler.py` next.

Source: Aho and Corasick 1975, Efficient string matching, CACM 18(6), algorithms 2 and 3.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from rtp_jax.errors import InvalidArgument


class Released(NamedTuple):
    """Text that is certain, and the stop string that ended it, if one did."""

    text: str
    stop: str | None = None


class StopStrings:
    """Streaming search for stop strings, in one completion.

    The match that is complete first wins; if several are complete at the same character, the
    first in the list.  The text is cut before the match, or after it with
    `include_stop_str_in_output`.
    """

    def __init__(self, stops: Sequence[str], include_stop_str_in_output: bool = False):
        for index, stop in enumerate(stops):
            if not isinstance(stop, str) or not stop:
                raise InvalidArgument(
                    f"RTPJ-3320 STOP_STRING_INVALID: stop[{index}] is {stop!r}. "
                    "Every stop string is a str of at least one character; leave out this one.",
                    field="stop",
                )
        self._stops = tuple(stops)
        self._include = include_stop_str_in_output
        self._automaton = _Automaton(self._stops)
        self._state = 0
        self._held = ""

    def push(self, text: str, *, armed: bool = True) -> Released:
        """Take new text; return what is certain.  While not armed, a match ends nothing."""
        automaton, state = self._automaton, self._state
        for index, char in enumerate(text):
            state = automaton.step(state, char)
            found = automaton.found[state]
            if found is not None and armed:
                return self._cut(text[: index + 1], self._stops[found])
        self._state = state
        return self._release(self._held + text, keep=automaton.hold[state])

    def finish(self) -> Released:
        """Return what was held back: it became no stop string."""
        self._state = 0
        return self._release(self._held, keep=0)

    def _cut(self, text: str, stop: str) -> Released:
        text = self._held + text
        self._state, self._held = 0, ""
        return Released(text if self._include else text[: -len(stop)], stop)

    def _release(self, text: str, *, keep: int) -> Released:
        cut = len(text) - keep
        self._held = text[cut:]
        return Released(text[:cut])


class _Automaton:
    """States are the beginnings of stop strings; state 0 is the empty one."""

    def __init__(self, stops: Sequence[str]):
        self._next: list[dict[str, int]] = [{}]
        self._fail = [0]  # the longest shorter end of the text that is also a state
        self.found: list[int | None] = [None]  # the first stop string that is complete here
        self.hold = [0]  # how many characters could still become a stop string
        for index, stop in enumerate(stops):
            self._add(stop, index)
        self._link()

    def step(self, state: int, char: str) -> int:
        """Go on by one character."""
        while state and char not in self._next[state]:
            state = self._fail[state]
        return self._next[state].get(char, 0)

    def _add(self, stop: str, index: int) -> None:
        state = 0
        for depth, char in enumerate(stop, 1):
            if char not in self._next[state]:
                self._next[state][char] = len(self._next)
                self._next.append({})
                self._fail.append(0)
                self.found.append(None)
                self.hold.append(depth)
            state = self._next[state][char]
        if self.found[state] is None:
            self.found[state] = index

    def _link(self) -> None:
        """Set what depends on shorter states, in the order of their length."""
        queue = deque(self._next[0].values())
        while queue:
            state = queue.popleft()
            fail = self._fail[state]
            self.found[state] = _first(self.found[state], self.found[fail])
            if not self._next[state]:  # complete, and the beginning of nothing longer
                self.hold[state] = self.hold[fail]
            for char, longer in self._next[state].items():
                self._fail[longer] = self.step(fail, char)
                queue.append(longer)


def _first(a: int | None, b: int | None) -> int | None:
    return b if a is None else a if b is None else min(a, b)
