"""What is made of the observations of a run?  One code for both doors and for every command.

Seconds, at the client.  A percentile is interpolated linearly between the two nearest observations
(numpy's `linear`, type 7 of Hyndman and Fan 1996).  Definitions, also in docs/benchmarks.md:

- **TTFT**: first message with a token, less the arrival; `ttft_from_send_s`: less the sending.
- **TPOT**: (last - first message) / (tokens - 1): one number for each request.
- **ITL**: each gap between tokens; tokens that come in one message have no gap between them.
- **message gap**: each gap between messages with tokens, which some tools call ITL.
- **E2E**: the end of the stream, less the arrival.
"""

import collections
import itertools
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from rtp_jax.benchmark.drive import Observed
from rtp_jax.benchmark.options import Objective

PERCENTILES = (50, 95, 99)
PERCENTILE_METHOD = "linear interpolation between the nearest observations (type 7)"


def ttft_s(seen: Observed) -> float:
    """Return the time to first token, from the arrival."""
    return seen.messages[0][0] - seen.at_s


def e2e_s(seen: Observed) -> float:
    """Return the time to the end of the stream, from the arrival."""
    return seen.ended_s - seen.at_s


def num_tokens(seen: Observed) -> int:
    """Count the tokens that came: as the server says, else one for each message at least."""
    if seen.num_output_tokens is not None:
        return seen.num_output_tokens
    return sum(1 if known is None else known for _, known in seen.messages)


def tpot_s(seen: Observed) -> float | None:
    """Return the time per output token; None: there was but one token."""
    tokens = num_tokens(seen)
    if tokens < 2:
        return None
    return (seen.messages[-1][0] - seen.messages[0][0]) / (tokens - 1)


def itl_s(seen: Observed) -> list[float] | None:
    """List the gaps between tokens; None: the server does not say which message has how many."""
    counts = [known for _, known in seen.messages]
    if None in counts:
        if num_tokens(seen) != len(counts):
            return None
        counts = [1] * len(counts)  # as many messages as tokens: one each
    gaps = []
    for gap, count in zip([None, *message_gaps_s(seen)], counts, strict=True):
        gaps += ([] if gap is None else [gap]) + [0.0] * ((count or 1) - 1)
    return gaps


def message_gaps_s(seen: Observed) -> list[float]:
    """List the gaps between messages that brought tokens."""
    return [after - before for (before, _), (after, _) in itertools.pairwise(seen.messages)]


def summary(seen: Sequence[Observed], objective: Objective | None) -> dict:
    """Put the figures of a run together.

    Args:
      seen: all requests of the run.
      objective: what a good request must keep; None: goodput is not counted.
    """
    fine = [each for each in seen if each.failure is None]
    duration_s = max(each.ended_s for each in seen)
    output_tokens, prompt_tokens = sum(map(num_tokens, fine)), _total(fine, "prompt")
    gaps = [itl_s(each) for each in fine]
    figures = {
        "num_requests": len(seen),
        "num_completed": len(fine),
        "failures": dict(collections.Counter(each.failure for each in seen if each.failure)),
        "duration_s": duration_s,
        "requests_per_s": len(fine) / duration_s,
        "output_tokens_per_s": output_tokens / duration_s,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "num_short": sum(num_tokens(each) < each.planned.num_output_tokens for each in fine),
        "cached_tokens": (cached := _total(fine, "cached")),
        "cached_share": cached / prompt_tokens if cached is not None and prompt_tokens else None,
        "ttft_s": spread(map(ttft_s, fine)),
        "ttft_from_send_s": spread(each.messages[0][0] - each.sent_s for each in fine),
        "tpot_s": spread(each for each in map(tpot_s, fine) if each is not None),
        "itl_s": spread(gap for each in gaps if each is not None for gap in each),
        "num_without_itl": gaps.count(None),
        "message_gap_s": spread(gap for each in fine for gap in message_gaps_s(each)),
        "e2e_s": spread(map(e2e_s, fine)),
        "sent_late_s": spread(each.sent_s - each.at_s for each in seen),
        "percentile_method": PERCENTILE_METHOD,
    }
    return figures | ({} if objective is None else goodput(fine, objective, duration_s, len(seen)))


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """Return percentiles, mean and ends; None: there is no value."""
    found = np.fromiter(values, float)
    if not found.size:
        return None
    percentiles = np.percentile(found, PERCENTILES, method="linear")
    named = {f"p{p}": float(v) for p, v in zip(PERCENTILES, percentiles, strict=True)}
    ends = {"min": float(found.min()), "max": float(found.max())}
    return named | {"mean": float(found.mean())} | ends


def medians(rounds: Sequence[dict[str, float]]) -> dict:
    """Return the median of each figure over rounds, their ranges, and the rounds themselves."""
    values = {name: [each[name] for each in rounds] for name in rounds[0]}
    ranges = {name: [min(each), max(each)] for name, each in values.items()}
    middle = {name: statistics.median(each) for name, each in values.items()}
    return {**middle, "ranges": ranges, "rounds": list(rounds)}


def goodput(fine: Sequence[Observed], objective: Objective, duration_s: float, asked: int) -> dict:
    """Count the requests that kept every limit; failed ones kept none."""
    good = [each for each in fine if keeps(each, objective)]
    return {
        "slo_s": objective.limits_s,
        "goodput": {
            "requests_per_s": len(good) / duration_s,
            "output_tokens_per_s": sum(map(num_tokens, good)) / duration_s,
            "share": len(good) / asked,
        },
    }


def keeps(seen: Observed, objective: Objective) -> bool:
    """Tell whether a request kept every limit; one of a single token has no TPOT to miss."""
    took = {"ttft": ttft_s(seen), "tpot": tpot_s(seen) or 0.0, "e2e": e2e_s(seen)}
    return all(took[name] <= limit for name, limit in objective.limits_s.items())


def _total(seen: Sequence[Observed], kind: str) -> int | None:
    """Add up what the servers said; None: one of them did not say."""
    said = [each.num_prompt_tokens if kind == "prompt" else each.num_cached_tokens for each in seen]
    return None if not said or None in said else sum(filter(None, said))
