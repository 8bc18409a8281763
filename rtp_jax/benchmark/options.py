"""How are the options of a benchmark read?  Numbers, lists and objectives, refused in words."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rtp_jax.errors import InvalidArgument

LATENCIES = ("ttft", "tpot", "e2e")
MOST = (1 << 31) - 1  # what the wire holds


@dataclass(frozen=True, slots=True)
class Objective:
    """A service-level objective: the longest that each latency may take, in seconds."""

    limits_s: dict[str, float]  # of those in LATENCIES

    def __str__(self) -> str:
        return ",".join(f"{name}={limit:g}" for name, limit in self.limits_s.items())


def refused(flag: str, given: object, allowed: str) -> InvalidArgument:
    """Build the error for an option that cannot work as given."""
    return InvalidArgument(
        f"RTPJ-5501 BENCH_OPTION_INVALID: {flag} is {str(given)[:120]!r}; it must be {allowed}.",
        field=flag.lstrip("-").replace("-", "_"),
    )


def number(flag: str, text: str, *, above: float = 0.0, most: float = math.inf) -> float:
    """Read a number that is greater than `above` and at most `most`."""
    words = f"a number > {above:g}" + (f" and <= {most:g}" if most < math.inf else "")
    try:
        value = float(text)
    except ValueError as error:
        raise refused(flag, text, words) from error
    if not (above < value <= most and math.isfinite(value)):
        raise refused(flag, text, words)
    return value


def count(flag: str, text: str, *, least: int = 1) -> int:
    """Read an integer that is at least `least`."""
    words = f"an integer in [{least}, {MOST}]"
    try:
        value = int(text)
    except ValueError as error:
        raise refused(flag, text, words) from error
    if not least <= value <= MOST:
        raise refused(flag, text, words)
    return value


def numbers(flag: str, text: str) -> list[float]:
    """Read a list of different positive numbers, `0.5,1,2`, and put them in order."""
    values = sorted({number(flag, part) for part in text.split(",")})
    if len(values) < 2:
        raise refused(
            flag, text, "at least two numbers, as in 1,2,4: a sweep goes from one to more"
        )
    return values


def objective(flag: str, text: str) -> Objective:
    """Read an objective, `ttft=0.5,tpot=0.05`, in seconds."""
    limits = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if name not in LATENCIES or not equals or name in limits:
            allowed = f"a list like ttft=0.5,tpot=0.05, of {', '.join(LATENCIES)}, each once"
            raise refused(flag, text, allowed)
        limits[name] = number(f"{flag} {name}", value)
    return Objective(limits)


def json_object(flag: str, text: str) -> dict[str, object]:
    """Read a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refused(flag, text, 'a JSON object, as in {"return_token_ids": true}') from error
    if not isinstance(value, dict):
        raise refused(flag, text, 'a JSON object, as in {"return_token_ids": true}')
    return value


def not_together(given: Sequence[str], why: str) -> InvalidArgument:
    """Build the error for options that contradict each other."""
    return InvalidArgument(
        f"RTPJ-5502 BENCH_OPTIONS_CONTRADICT: {' and '.join(given)}: {why}.",
        field=given[0].lstrip("-").replace("-", "_"),
    )
