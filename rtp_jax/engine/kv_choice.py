"""Which layers may keep KV in fewer bits?  As many as a budget of quality allows.

Each layer is measured alone in every scheme, and has the one that moves logits least.  Then layers
are taken in the order of how little they move them: as many as, measured together, stay within the
budget, which bisection finds.  All layers save equally many bytes, so these are the fewest bytes
of this order.

What is measured is small, and rounding to bfloat16 in between drowns it: any change of a layer, as
small as it may be, flips such roundings in all layers after it.  So the model computes in float32
here unless the config names a dtype, whatever it will be served in.

Read next: `runner/kv_tolerance.py` for what is measured.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide, start
from rtp_jax.errors import InvalidArgument
from rtp_jax.quant.kv_schemes import KV_SCHEMES, KVLayers, KVScheme
from rtp_jax.runner.kv_tolerance import KVTolerance

PLAIN, CANDIDATES = "plain", ("int8", "fp8")
WINDOW = 512  # tokens of a text that are read in one go
Measure = Callable[[Sequence[str]], float]


@dataclass(frozen=True, slots=True)
class KVChoice:
    """What was chosen, and what it was chosen by."""

    layers: KVLayers
    divergence: float  # nats per token, all chosen layers together
    alone: tuple[dict[str, float], ...]  # of each layer and scheme, the others as they are
    num_tokens: int  # that were read for each of these figures


@dataclass(frozen=True, slots=True)
class Ranking:
    """How much each layer minds each scheme."""

    alone: tuple[dict[str, float], ...]  # of each layer and scheme, the others as they are

    @property
    def best(self) -> list[str]:
        """The scheme that each layer minds least."""
        return [min(one, key=lambda scheme, one=one: one[scheme]) for one in self.alone]

    def first(self, count: int) -> list[str]:
        """Quantize the layers that mind least, as many as `count`, each as it minds least."""
        best = self.best
        order = sorted(range(len(best)), key=lambda layer: self.alone[layer][best[layer]])
        taken = set(order[:count])
        return [best[layer] if layer in taken else PLAIN for layer in range(len(best))]


def rank(measure: Measure, num_layers: int) -> Ranking:
    """Measure each layer alone in each scheme; `measure` gives nats per token."""
    alone = []
    for layer in range(num_layers):
        one = {}
        for scheme in CANDIDATES:
            schemes = [PLAIN] * num_layers
            schemes[layer] = scheme
            one[scheme] = measure(schemes)
        alone.append(one)
    return Ranking(tuple(alone))


def choose(measure: Measure, num_layers: int, budget: float) -> tuple[list[str], float, Ranking]:
    """Choose a scheme for each layer; return it, its divergence, and what it was chosen by.

    Args:
      measure: gives the divergence of a choice, in nats per token.
      num_layers: of the model.
      budget: the divergence that the choice may have at most.
    """
    ranking = rank(measure, num_layers)
    within, beyond, found = 0, num_layers + 1, 0.0
    while beyond - within > 1:
        # All of them first: often everything may be quantized.
        count = num_layers if beyond > num_layers else (within + beyond) // 2
        together = measure(ranking.first(count))
        if together <= budget:
            within, found = count, together
        else:
            beyond = count
    return ranking.first(within), found, ranking


def choose_kv_layers(
    model: str,
    config: EngineConfig,
    texts: Sequence[str],
    *,
    budget: float,
    progress: Callable[[str], None],
) -> KVChoice:
    """Load a model and choose how each of its layers keeps KV.

    Raises:
      InvalidArgument: RTPJ-1101, the config says how to keep KV; RTPJ-1103, there is no text.
    """
    with tolerance_of(model, config, texts, progress=progress) as (tolerance, plain):
        measured = 0

        def measure(schemes: Sequence[str]) -> float:
            nonlocal measured
            measured += 1
            found = tolerance.divergence(schemes)
            progress(f"measured {measured} choices over {tolerance.num_tokens} tokens: {found:.2e}")
            return found

        schemes, divergence, ranking = choose(measure, tolerance.num_layers, budget)
    layers = tuple(plain if name == PLAIN else KV_SCHEMES[name] for name in schemes)
    return KVChoice(KVLayers(layers), divergence, ranking.alone, tolerance.num_tokens)


@contextlib.contextmanager
def tolerance_of(
    model: str, config: EngineConfig, texts: Sequence[str], *, progress: Callable[[str], None]
) -> Iterator[tuple[KVTolerance, KVScheme]]:
    """Load a model to be measured on texts; beside it, what a layer keeps if it is left alone.

    Raises:
      InvalidArgument: as `choose_kv_layers`.
    """
    for name, value in (("kv_dtype", config.cache.kv_dtype), ("kv_layers", config.cache.kv_layers)):
        if value not in ("auto", None):
            raise InvalidArgument(
                f"RTPJ-1101 CONFIG_INVALID: {name}={value!r} is not allowed; it must be left out,"
                " because it is what is chosen here.",
                field=name,
            )
    if config.runner.tensor_parallel_size > 1:
        raise InvalidArgument(
            f"RTPJ-1101 CONFIG_INVALID: tensor_parallel_size={config.runner.tensor_parallel_size}"
            " is not allowed; it must be 1, because layers are measured on one device.",
            field="tensor_parallel_size",
        )
    cache = dataclasses.replace(config.cache, num_pages=2)
    scheduler = dataclasses.replace(config.scheduler, max_num_seqs=1, max_num_batched_tokens=8)
    config = dataclasses.replace(config, cache=cache, scheduler=scheduler)
    decided = served = decide(model, config)
    windows = read_windows(decided.tokenizer, texts)
    if config.model.dtype == "auto":
        precise = dataclasses.replace(config.model, dtype="float32")
        config = dataclasses.replace(config, model=precise)
        decided = decide(model, config)
    runner = start(decided, config, progress=progress)
    try:
        tolerance = KVTolerance(
            weights=runner.weights,
            build=runner.build,
            page_shape=runner.shapes.kv[0].pages.shape[1:],
            texts=windows,
            device=decided.facts.device,
        )
        yield tolerance, served.kv.schemes[0]
    finally:
        runner.close()


def read_windows(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Turn texts into ids, in windows.

    Raises:
      InvalidArgument: RTPJ-1103, there is nothing to read, or nobody who can.
    """
    encoded = [] if tokenizer is None else [tokenizer.encode(text) for text in texts]
    windows = [ids[at : at + WINDOW] for ids in encoded for at in range(0, len(ids), WINDOW)]
    if not windows:
        raise InvalidArgument(
            "RTPJ-1103 CALIBRATION_TEXT_INVALID: there is no text to measure on, or no tokenizer to"
            " read it. Give a few pages of text as the model will read it.",
            field="text",
        )
    return windows
