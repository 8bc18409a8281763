"""Does a measurement pick the right layers?  Its choice against others that take the same bytes.

Whichever layers keep KV in 8 bits, the same number of them takes the same bytes.  So for each
number the measured choice is held against every other way to spend them.  Where these are too many,
it is held against those that need no measurement (the first layers, the last ones, all of them),
those that differ from it in one scheme or in one layer for another, and some drawn at random.

What is chosen by one half of the texts is judged by the other half.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from rtp_jax.config import EngineConfig
from rtp_jax.engine.kv_choice import CANDIDATES, PLAIN, Measure, Ranking, rank, tolerance_of

Choice = tuple[str, ...]  # a scheme for each layer
EXHAUSTIVE = 100  # other choices of one number of layers, at most; else a sample


@dataclass(frozen=True, slots=True)
class Row:
    """The measured choice of some number of layers, and its rivals."""

    count: int  # layers in 8 bits
    chosen: Choice
    divergence: float  # nats per token, of the choice
    rivals: dict[Choice, float]

    @property
    def better(self) -> list[Choice]:
        """Rivals that move the distribution less."""
        return [rival for rival, nats in self.rivals.items() if nats < self.divergence]

    def fixed(self) -> dict[str, float]:
        """Give the divergence of the choices that need no measurement."""
        found = {}
        for name, choice in fixed_choices(len(self.chosen), self.count).items():
            found[name] = self.rivals.get(choice, self.divergence)
        return found


def rank_layers(model: str, texts: Sequence[str], **options) -> Ranking:
    """Measure each layer alone, as `rtp-jax kv-layers` does."""
    config = EngineConfig.from_options(**options)
    with tolerance_of(model, config, texts, progress=lambda _: None) as (tolerance, _):
        return rank(tolerance.divergence, tolerance.num_layers)


def compare(
    model: str, ranking: Ranking, texts: Sequence[str], *, sample: int, **options
) -> list[Row]:
    """Judge the choice of every number of layers on texts it was not chosen by."""
    config = EngineConfig.from_options(**options)
    with tolerance_of(model, config, texts, progress=lambda _: None) as (tolerance, _):
        return [
            judge(tolerance.divergence, ranking, count, sample)
            for count in range(1, tolerance.num_layers + 1)
        ]


def judge(measure: Measure, ranking: Ranking, count: int, sample: int) -> Row:
    """Measure the choice of one number of layers, and its rivals."""
    chosen = tuple(ranking.first(count))
    others = [rival for rival in rivals(chosen, ranking.best, sample) if rival != chosen]
    return Row(count, chosen, measure(chosen), {rival: measure(rival) for rival in others})


def rivals(chosen: Choice, best: Sequence[str], sample: int) -> list[Choice]:
    """List choices of as many layers; the given one may be among them."""
    num_layers, count = len(chosen), len(chosen) - chosen.count(PLAIN)
    if math.comb(num_layers, count) * len(CANDIDATES) ** count <= EXHAUSTIVE:
        return [
            spread(layers, schemes, num_layers)
            for layers in itertools.combinations(range(num_layers), count)
            for schemes in itertools.product(CANDIDATES, repeat=count)
        ]
    chance = random.Random(count)
    drawn = [
        spread(
            chance.sample(range(num_layers), count), chance.choices(CANDIDATES, k=count), num_layers
        )
        for _ in range(sample)
    ]
    fixed = fixed_choices(num_layers, count).values()
    return list(dict.fromkeys([*fixed, *neighbours(chosen, best), *drawn]))


def neighbours(chosen: Choice, best: Sequence[str]) -> list[Choice]:
    """List choices that differ in the scheme of one layer, or have one layer for another."""
    found = []
    for at, scheme in enumerate(chosen):
        if scheme == PLAIN:
            continue
        for other in CANDIDATES:
            found.append((*chosen[:at], other, *chosen[at + 1 :]))
        for to in (layer for layer, kept in enumerate(chosen) if kept == PLAIN):
            changed = list(chosen)
            changed[at], changed[to] = PLAIN, best[to]
            found.append(tuple(changed))
    return found


def fixed_choices(num_layers: int, count: int) -> dict[str, Choice]:
    """Name the choices that need no measurement; of all layers, they are the uniform ones."""
    ends = {"first": range(count), "last": range(num_layers - count, num_layers)}
    return {
        f"{end} in {scheme}": spread(layers, [scheme] * count, num_layers)
        for end, layers in ends.items()
        for scheme in CANDIDATES
    }


def spread(layers: Sequence[int], schemes: Sequence[str], num_layers: int) -> Choice:
    """Give some layers their schemes, and leave the others as they are."""
    scheme_of = dict(zip(layers, schemes, strict=True))
    return tuple(scheme_of.get(layer, PLAIN) for layer in range(num_layers))
