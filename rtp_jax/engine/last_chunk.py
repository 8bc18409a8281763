"""How many tokens does the last step of a prompt take whose pages go to another worker?

    one step    [ all tokens ........... ] -> their pages travel
    two         [ most of them ... ] [ the rest ] -> the pages of the rest travel
                                     -> pages travel

Pages travel while the next step computes, so what the reader waits for are those of the last one.
A short last step costs one step more, and on a slow link it saves more than that.  Both are
predicted by what was measured; while nothing was, prompts end with a step as long as any.
"""

import math
from collections.abc import Callable

from rtp_jax.cache.rates import LinearCost

PARTS = (2, 4, 8)  # of a whole step, that the last one may be


class LastChunk:
    """Predicts when the pages of a whole step have arrived; safe for several threads."""

    def __init__(
        self,
        *,
        longest: int,
        page_size: int,
        page_bytes: int,
        prefill_s: Callable[[float], float | None],
    ):
        """Know nothing yet of how fast pages travel.

        Args:
          longest: tokens of one step.
          page_size: tokens.
          page_bytes: bytes of a page.
          prefill_s: predicts the seconds of a step by its tokens; None: nothing was measured.
        """
        self._longest, self._page_size, self._page_bytes = longest, page_size, page_bytes
        self._prefill_s = prefill_s
        self._travel = LinearCost()  # by bytes

    def travelled(self, num_bytes: int, seconds: float) -> None:
        """Learn how long pages took to arrive after all had been computed."""
        self._travel.observe(num_bytes, seconds)

    def tokens(self) -> int:
        """Choose the tokens of the last step; 0: as many as there are."""
        page_size = self._page_size
        shorter = {self._longest // part // page_size * page_size for part in PARTS} - {0}
        best = min((self._longest, *sorted(shorter, reverse=True)), key=self._arrival_s)
        return best if best < self._longest else 0

    def _arrival_s(self, last: int) -> float:
        """Predict when all pages have arrived if the last tokens have a step of their own."""
        first = self._longest - last
        computed_s, travels_s = self._step_s(first), self._travels_s(first)
        last_s, last_travels_s = self._step_s(last), self._travels_s(last)
        if computed_s is None or travels_s is None or last_s is None or last_travels_s is None:
            return math.inf  # nothing was measured
        return computed_s + max(travels_s, last_s) + last_travels_s

    def _step_s(self, num_tokens: int) -> float | None:
        return self._prefill_s(num_tokens) if num_tokens else 0.0

    def _travels_s(self, num_tokens: int) -> float | None:
        num_bytes = num_tokens / self._page_size * self._page_bytes
        return self._travel.estimate(num_bytes) if num_tokens else 0.0
