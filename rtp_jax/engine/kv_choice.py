"""Which layers may keep KV in fewer bits?  As many as a budget of quality allows.

Each layer is measured alone in every scheme, and has the one that moves logits least.  Then layers
are taken in the order of how little they move them: as many as, measured together, stay within the
budget, which bisection finds.  All layers save equally many bytes, so these are the fewest bytes
of this order.

Read next: `runner/kv_tolerance.py` for what is measured.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import decide, start
from rtp_jax.errors import InvalidArgument
from rtp_jax.quant.kv_schemes import KV_SCHEMES, KVLayers
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


def choose(measure: Measure, num_layers: int, budget: float) -> tuple[list[str], float, list[dict]]:
    """Choose a scheme for each layer; return it, its divergence, and those of layers alone.

    Args:
      measure: gives the divergence of a choice, in nats per token.
      num_layers: of the model.
      budget: the divergence that the choice may have at most.
    """
    alone = []
    for layer in range(num_layers):
        one = {}
        for scheme in CANDIDATES:
            schemes = [PLAIN] * num_layers
            schemes[layer] = scheme
            one[scheme] = measure(schemes)
        alone.append(one)
    best = [min(one, key=lambda scheme, one=one: one[scheme]) for one in alone]
    order = sorted(range(num_layers), key=lambda layer: alone[layer][best[layer]])

    def first(count: int) -> list[str]:
        taken = set(order[:count])
        return [best[layer] if layer in taken else PLAIN for layer in range(num_layers)]

    within, beyond, found = 0, num_layers + 1, 0.0
    while beyond - within > 1:
        # All of them first: often everything may be quantized.
        count = num_layers if beyond > num_layers else (within + beyond) // 2
        together = measure(first(count))
        if together <= budget:
            within, found = count, together
        else:
            beyond = count
    return first(within), found, alone


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
    for name, value in (("kv_dtype", config.cache.kv_dtype), ("kv_layers", config.cache.kv_layers)):
        if value not in ("auto", None):
            raise InvalidArgument(
                f"RTPJ-1101 CONFIG_INVALID: {name}={value!r} is not allowed; it must be left out,"
                " because it is what is chosen here.",
                field=name,
            )
    cache = dataclasses.replace(config.cache, num_pages=2)
    scheduler = dataclasses.replace(config.scheduler, max_num_seqs=1, max_num_batched_tokens=8)
    config = dataclasses.replace(config, cache=cache, scheduler=scheduler)
    decided = decide(model, config)
    windows = read_windows(decided.tokenizer, texts)
    runner = start(decided, config, progress=progress)
    tolerance = KVTolerance(
        weights=runner.weights,
        build=runner.build,
        page_shape=runner.shapes.kv[0].pages.shape[1:],
        texts=windows,
        device=decided.facts.device,
    )
    measured = 0

    def measure(schemes: Sequence[str]) -> float:
        nonlocal measured
        measured += 1
        found = tolerance.divergence(schemes)
        progress(f"measured {measured} choices over {tolerance.num_tokens} tokens: {found:.6f}")
        return found

    schemes, divergence, alone = choose(measure, decided.spec.num_layers, budget)
    plain = decided.kv.schemes[0]
    layers = tuple(plain if name == PLAIN else KV_SCHEMES[name] for name in schemes)
    runner.close()
    return KVChoice(KVLayers(layers), divergence, tuple(alone), tolerance.num_tokens)


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
