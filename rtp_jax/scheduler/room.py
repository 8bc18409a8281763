"""What does a step have left?"""

from dataclasses import dataclass


@dataclass(slots=True)
class Room:
    """Tokens and logit rows that nobody has taken yet."""

    tokens: int
    logit_rows: int

    def take(self, tokens: int, logit_rows: int) -> None:
        """Give some to a row."""
        self.tokens -= tokens
        self.logit_rows -= logit_rows
        assert self.tokens >= 0, f"{self}"
        assert self.logit_rows >= 0, f"{self}"
