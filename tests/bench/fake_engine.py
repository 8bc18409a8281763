"""An engine of known speed: `python -m tests.bench.fake_engine SPEC SPEED`."""

import os
import sys
import time

from bench.peers import figures
from bench.peers.worker import Spec, answer
from bench.peers.workloads import Request

PREFILL_TOK_S = 10_000.0


class FakeEngine:
    """Says how long things take instead of doing them; prints, as engines do, to stdout."""

    def __init__(self, spec: Spec):
        """Fail for the precision that it does not have."""
        if spec.precision == "int4":
            raise ValueError("no int4 here")
        self._speed = float(sys.argv[2])
        self._asked = 0
        print("noise that is no reply")

    def versions(self) -> dict[str, str]:
        """Name itself."""
        return {"fake": "1.0"}

    def prefill(self, prompt: list[int]) -> float:
        """The first prefill of a turn is slow, as in a real engine that was idle."""
        self._asked += 1
        return len(prompt) / PREFILL_TOK_S * (9 if self._asked % 4 == 1 else 1)

    def decode(self, prompts: list[list[int]], num_new: int) -> tuple[int, float]:
        """Rows begin one step after the other, so that the stretch they share is shorter."""
        streams = [
            [(row + token) / self._speed for token in range(num_new + len(prompts))]
            for row in range(len(prompts))
        ]
        return figures.steady(streams)

    def serve(self, requests: list[Request]) -> list[list[float]]:
        """Everything takes a step; with a speed of 13 it dies on the way."""
        if self._speed == 13:
            os._exit(7)
        time.sleep(0.01)
        return [
            [r.arrival_s + (1 + token) / self._speed for token in range(r.max_tokens)]
            for r in requests
        ]

    def close(self) -> None:
        """With a speed of 17 it never ends by itself."""
        if self._speed == 17:
            time.sleep(1000)


if __name__ == "__main__":
    answer(FakeEngine)
