"""From times of tokens to figures, and from the rounds' figures to one row of a table."""

import statistics
from collections.abc import Sequence

DISTURBED = 0.05  # share of the machine's CPU that others took, above which a turn is set aside


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolate between the two nearest values."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def steady(streams: Sequence[Sequence[float]]) -> tuple[int, float]:
    """Count the tokens while all sequences decode together, and the seconds it took.

    That is from when the last sequence has its first token until the first one ends, so the
    prefill of stragglers is not counted.

    Args:
      streams: for each sequence the times of its tokens, in seconds, rising.

    Raises:
      ValueError: there is no such stretch: one ended before another began.
    """
    begin = max(stream[0] for stream in streams)
    end = min(stream[-1] for stream in streams)
    if end <= begin:
        raise ValueError("the sequences never decoded together")
    tokens = sum(begin < moment <= end for stream in streams for moment in stream)
    return tokens, end - begin


def served_figures(
    arrivals: Sequence[float], prompt_tokens: int, streams: Sequence[Sequence[float]]
) -> dict[str, float]:
    """Throughput and latencies of a served mix; all times in seconds from its start.

    TTFT counts from the intended arrival, so waiting for a slot is in it.  TPOT is (last - first) /
    (tokens - 1), one number for each request.
    """
    ttft = [stream[0] - arrival for arrival, stream in zip(arrivals, streams, strict=True)]
    tpot = [(s[-1] - s[0]) / (len(s) - 1) for s in streams if len(s) > 1]
    output_tokens = sum(len(stream) for stream in streams)
    wall = max(stream[-1] for stream in streams)
    return {
        "tok_s": output_tokens / wall,
        "ttft_p50_s": percentile(ttft, 50),
        "ttft_p95_s": percentile(ttft, 95),
        "tpot_p50_s": percentile(tpot, 50),
        "tpot_p95_s": percentile(tpot, 95),
        "output_tokens": output_tokens,
        "prompt_tokens": prompt_tokens,
        "wall_s": wall,
    }


def undisturbed(turns: Sequence[dict]) -> tuple[list[dict], bool]:
    """Keep the turns in which others took little of the machine; all, if fewer than two are left.

    Returns the turns, and whether disturbed ones had to be among them.
    """
    quiet = [turn for turn in turns if turn["foreign"] <= DISTURBED]
    if len(quiet) >= min(2, len(turns)):
        return quiet, False
    return list(turns), True


def summary(turns: Sequence[dict]) -> dict:
    """Pool the turns of one engine in one workload: median and range of every figure."""
    kept, disturbed = undisturbed(turns)
    names = [name for name, value in kept[0]["figures"].items() if isinstance(value, int | float)]
    pooled = {}
    for name in names:
        values = [turn["figures"][name] for turn in kept]
        pooled[name] = {
            "median": statistics.median(values),
            "low": min(values),
            "high": max(values),
        }
    return {
        "rounds": len(kept),
        "set_aside": len(turns) - len(kept),
        "disturbed": disturbed,
        "foreign": max(turn["foreign"] for turn in kept),
        "figures": pooled,
    }
