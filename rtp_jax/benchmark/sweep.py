"""How does a server behave as load grows?  A run for each load, a table and a plot of them all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rtp_jax.benchmark.options import refused
from rtp_jax.benchmark.report import check_writable, table
from rtp_jax.errors import FailedPrecondition

COLUMNS = ("p50", "p95", "p99")
NOTHING = float("nan")  # a gap in the curve, where nothing completed
FORMATS = (".png", ".svg", ".pdf")
PANELS = (  # title, figure, unit
    ("time to first token", "ttft_s", "s"),
    ("time per output token", "tpot_s", "s"),
    ("gap between messages", "message_gap_s", "s"),
)


def shown(points: Sequence[dict], load: str) -> str:
    """Show a sweep, a row for each load.

    Args:
      points: figures of each run, and the load under the name `load`.
      load: rate or concurrency.
    """
    names = ("TTFT p50", "p95", "TPOT p50", "p95", "E2E p95")
    with_goodput = "goodput" in points[0]
    head = [load, "done", "failed", "requests/s", "output tok/s", *(f"{n} ms" for n in names)]
    rows = [[*head, *(["good"] if with_goodput else [])]]
    for point in points:
        cells = [("ttft_s", "p50"), ("ttft_s", "p95"), ("tpot_s", "p50"), ("tpot_s", "p95")]
        rows.append(
            [
                f"{point[load]:g}",
                str(point["num_completed"]),
                str(point["num_requests"] - point["num_completed"]),
                f"{point['requests_per_s']:.2f}",
                f"{point['output_tokens_per_s']:.1f}",
                *(_milliseconds(point[name], p) for name, p in (*cells, ("e2e_s", "p95"))),
                *([f"{point['goodput']['share']:.0%}"] if with_goodput else []),
            ]
        )
    return table(rows)


def check_plot(path: str | None) -> None:
    """Refuse, before a run, a plot that could not be drawn after it."""
    if path is None:
        return
    if Path(path).suffix.lower() not in FORMATS:
        raise refused("--plot", path, f"a file that ends in one of {', '.join(FORMATS)}")
    check_writable("--plot", path)
    plotting()


def plotting() -> Any:
    """Import matplotlib, which an extra installs.

    Raises:
      FailedPrecondition: it is not installed.
    """
    try:
        import matplotlib.figure  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            "RTPJ-5508 MATPLOTLIB_ABSENT: --plot draws with matplotlib, which is not installed. pip"
            " install 'rtp_jax[bench]', or leave --plot out: --json has the figures."
        ) from error
    return matplotlib


def plot(path: str, points: Sequence[dict], load: str, title: str) -> None:
    """Draw latencies and throughput against load into a file; its ending says the format."""
    figure = plotting().figure.Figure(figsize=(11, 7), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2).flat
    loads = [point[load] for point in points]
    for axis, (name, key, unit) in zip(axes, PANELS, strict=False):
        for percentile in COLUMNS:
            values = [point[key][percentile] if point[key] else NOTHING for point in points]
            axis.plot(loads, values, marker="o", label=percentile)
        axis.set(title=name, ylabel=unit, ylim=(0, None))
    last = figure.axes[-1]
    last.plot(loads, [point["output_tokens_per_s"] for point in points], marker="o", label="all")
    if "goodput" in points[0]:
        good = [point["goodput"]["output_tokens_per_s"] for point in points]
        last.plot(loads, good, marker="o", linestyle="--", label="within the objective")
    last.set(title="output tokens per second", ylabel="tokens/s", ylim=(0, None))
    for axis in figure.axes:
        axis.set_xlabel("requests per second" if load == "rate" else "requests at once")
        axis.set_xscale("log")  # loads are mostly doubled from one to the next
        axis.set_xticks(loads, [f"{value:g}" for value in loads])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    partial = Path(path).with_stem(Path(path).stem + ".partial")
    figure.savefig(partial, dpi=150)
    partial.replace(path)


def _milliseconds(spread: dict | None, percentile: str) -> str:
    return "-" if spread is None else f"{1e3 * spread[percentile]:.1f}"
