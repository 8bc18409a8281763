"""How long will a step take?  A line through the steps that a worker has measured, fitted online.

    seconds = c0 + c1 prefill + c2 decoding + c3 context + c4 prefill * context

prefill: prompt tokens of the step; decoding: sequences that bring one token; context: tokens that
all of them attend to.  No coefficient is negative.  The fit minimises relative errors (a decode
step of 5 ms counts as much as a prefill of 500 ms), forgets old steps, and treats one that took
far longer than predicted (a hiccup of the machine) as a little longer.  A worker that has reported
few steps is taken to be like the rest of the pool, whose fit is worth `PRIOR_STEPS` of its own.

Source: recursive least squares in information form, with a ridge towards the pool; coordinate
descent for the bound at zero (Franc, Hlavac, Navara 2005, Sequential coordinate-wise algorithm for
the non-negative least squares problem).  Read next: `worker_view.py`.
"""

import math
from typing import NamedTuple

from rtp_jax.router.facts import StepSample

NUM_TERMS = 5
Terms = tuple[float, float, float, float, float]
FORGET = 0.998  # what a step counts for when one more has come
PRIOR_STEPS = 8.0
SOLVE_EVERY = 8  # steps
SWEEPS = 30  # of coordinate descent, from the last solution
HICCUP = 3.0  # times the prediction; what is above is cut
MIN_SECONDS = 1e-5  # shorter steps weigh no more than one of this
# Before any worker has said anything: a small model on a CPU.
GUESS: Terms = (5e-3, 1e-3, 1e-3, 1e-6, 0.0)


class StepFit:
    """The coefficients of one worker, or of a pool."""

    def __init__(self, pool: "StepFit | None" = None):
        self.pool = pool
        self.num_steps = 0
        self.error = 0.0  # relative, of predictions made before each step was learned; an average
        self._own: list[float] = list(GUESS)
        self._products = [[0.0] * NUM_TERMS for _ in range(NUM_TERMS)]
        self._targets = [0.0] * NUM_TERMS
        self._unsolved = 0

    @property
    def coefficients(self) -> Terms:
        """c0 to c4, as of the last steps."""
        if self.num_steps == 0 and self.pool is not None:
            return self.pool.coefficients
        if self._unsolved:
            self._solve()
        c0, c1, c2, c3, c4 = self._own
        return c0, c1, c2, c3, c4

    def learn(self, step: StepSample) -> None:
        """Take one measured step into account."""
        if not (0 < step.seconds < math.inf):
            return
        terms = terms_of(step.prefill_tokens, step.num_decoding, step.context_tokens)
        expected = sum(c * term for c, term in zip(self._last(), terms, strict=True))
        seconds = step.seconds
        if self.num_steps >= PRIOR_STEPS:
            share = abs(seconds / max(expected, MIN_SECONDS) - 1)
            self.error += 0.05 * (min(share, HICCUP) - self.error)
            seconds = min(seconds, HICCUP * max(expected, MIN_SECONDS))
        weight = 1 / max(expected if self.num_steps >= PRIOR_STEPS else seconds, MIN_SECONDS) ** 2
        for i, products in enumerate(self._products):
            for j in range(i, NUM_TERMS):
                products[j] = products[j] * FORGET + weight * terms[i] * terms[j]
            self._targets[i] = self._targets[i] * FORGET + weight * terms[i] * seconds
        self.num_steps += 1
        self._unsolved += 1
        if self._unsolved >= SOLVE_EVERY:
            self._solve()

    def _last(self) -> list[float]:
        if self.num_steps == 0 and self.pool is not None:
            return list(self.pool.coefficients)
        return self._own

    def _solve(self) -> None:
        """Minimise over non-negative coefficients, from where they are."""
        self._unsolved = 0
        known = min(self.num_steps, 1 / (1 - FORGET))
        prior = self.pool.coefficients if self.pool is not None else GUESS
        # A term is drawn to its prior as if PRIOR_STEPS steps like the average one had said so; of
        # a term that no step has shown there is nothing else to know.
        pull = [PRIOR_STEPS * (self._products[i][i] / known or 1.0) for i in range(NUM_TERMS)]
        if self.pool is None:
            pull = [1e-3 * strength / PRIOR_STEPS for strength in pull]
        own = self._own
        for _ in range(SWEEPS):
            moved = 0.0
            for i in range(NUM_TERMS):
                slope = self._targets[i] + pull[i] * prior[i]
                for j in range(NUM_TERMS):
                    if j != i:
                        slope -= self._products[min(i, j)][max(i, j)] * own[j]
                value = max(0.0, slope / (self._products[i][i] + pull[i]))
                moved = max(moved, abs(value - own[i]) / (value + own[i] + 1e-30))
                own[i] = value
            if moved < 1e-4:
                return


def terms_of(prefill: float, decoding: float, context: float) -> Terms:
    """Return what the coefficients multiply."""
    return 1.0, float(prefill), float(decoding), float(context), float(prefill) * context


def step_seconds(fit: Terms, *, prefill: float, decoding: float, context: float) -> float:
    """Predict one step."""
    return fit[0] + fit[1] * prefill + fit[2] * decoding + (fit[3] + fit[4] * prefill) * context


class Pace(NamedTuple):
    """How fast a worker prefills beside what decodes there."""

    chunk: float  # tokens of a step
    step_s: float  # whatever the step holds
    token_s: float
    context_s: float  # for each token that a chunk attends to
    pair_s: float  # for each token, and each that it attends to

    def prefill_s(self, num_tokens: float, start: float) -> float:
        """Predict how long a prompt computes, in chunks; `start` tokens before it are known."""
        if num_tokens <= 0:
            return 0.0
        if num_tokens <= self.chunk:
            steps, behind = 1, start + num_tokens
        else:
            steps = math.ceil(num_tokens / self.chunk)
            behind = start + (num_tokens + self.chunk) / 2  # of a chunk, on average
        return steps * (self.step_s + self.context_s * behind) + num_tokens * (
            self.token_s + self.pair_s * behind
        )


def pace(fit: Terms, *, budget: int, decoding: float, context: float) -> Pace:
    """Say how fast a worker prefills.

    Args:
      fit: its coefficients.
      budget: tokens of one step; each decoding sequence takes one.
      decoding: sequences that decode meanwhile.
      context: tokens that those attend to.
    """
    return Pace(
        max(1.0, budget - decoding),
        fit[0] + fit[2] * decoding + fit[3] * context,
        fit[1] + fit[4] * context,
        fit[3],
        fit[4],
    )
