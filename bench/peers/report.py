"""Turn a file of `bench.peers.run` into Markdown tables.

    python -m bench.peers.report bench/results/peers.json [--engine rtp_jax]

One table for each model and precision: a row for each workload and figure, the median and [range]
of every engine, and how many times as good ours is as the best of the others: above 1.00 we are
ahead, below it behind.  A mark (*) says that other processes took part of the machine meanwhile.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from bench.peers import figures

# What is shown of a workload: the figure, its heading, and whether more is better.
SHOWN = {
    "tok_s": ("tok/s", True),
    "ttft_p50_s": ("TTFT p50 s", False),
    "ttft_p95_s": ("TTFT p95 s", False),
    "tpot_p50_s": ("TPOT p50 s", False),
    "first_token_s": ("process start to first token, s", False),
    "peak_rss_gib": ("peak RSS GiB", False),
    "pss_gib": ("PSS GiB", False),
}


def pooled(turns: Sequence[dict]) -> dict[tuple[str, str], dict]:
    """Summarize by (workload, engine)."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for turn in turns:
        groups.setdefault((turn["workload"], turn["engine"]), []).append(turn)
    return {key: figures.summary(group) for key, group in groups.items()}


def digits(value: float) -> str:
    """Write three digits, or all that stand before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def cell(summary: dict | None, name: str) -> str:
    """Write a median with its range, or a dash."""
    if summary is None or name not in summary["figures"]:
        return "-"
    value = summary["figures"][name]
    mark = "*" if summary["disturbed"] else ""
    return f"{digits(value['median'])}{mark} [{digits(value['low'])}, {digits(value['high'])}]"


def advantage(ours: float, others: Sequence[float], *, more_is_better: bool) -> float:
    """How many times as good ours is as the best of the others."""
    return ours / max(others) if more_is_better else min(others) / ours


def row(summaries: dict, workload: str, name: str, engines: Sequence[str], own: str) -> str:
    """One line of a table."""
    heading, more_is_better = SHOWN[name]
    found = {engine: summaries.get((workload, engine)) for engine in engines}
    medians = {
        engine: summary["figures"][name]["median"]
        for engine, summary in found.items()
        if summary is not None and name in summary["figures"]
    }
    others = [value for engine, value in medians.items() if engine != own]
    ratio = "-"
    if own in medians and others:
        ratio = f"{advantage(medians[own], others, more_is_better=more_is_better):.2f}"
    cells = [cell(found[engine], name) for engine in engines]
    return f"| {workload}, {heading} | " + " | ".join([*cells, ratio]) + " |"


def tables(record: dict, own: str = "rtp_jax") -> str:
    """All tables, under what they were measured with."""
    lines = [f"{record['machine']}, {record['threads']} threads, {record['date'][:10]}:"]
    lines += [f"`{record['command']}`", ""]
    for name, versions in sorted(record["versions"].items()):
        lines.append(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in versions.items()))
    for model, precision in dict.fromkeys((t["model"], t["precision"]) for t in record["turns"]):
        turns = [t for t in record["turns"] if (t["model"], t["precision"]) == (model, precision)]
        summaries = pooled(turns)
        engines = list(dict.fromkeys(turn["engine"] for turn in turns))
        engines.sort(key=lambda engine: engine != own)  # ours first, the others as they came
        lines += ["", f"### {model}, {precision}", ""]
        lines.append("| | " + " | ".join([*engines, "ours / best peer"]) + " |")
        lines.append("|---|" + "---|" * (len(engines) + 1))
        for workload in dict.fromkeys(turn["workload"] for turn in turns):
            known = {n for (w, _), s in summaries.items() if w == workload for n in s["figures"]}
            lines += [row(summaries, workload, n, engines, own) for n in SHOWN if n in known]
    failures = {
        f"{f['engine']}, {f['model']} {f['precision']}, {f['workload']}: {f['error']}"
        for f in record["failures"]
    }
    if failures:
        lines += ["", "Failed:", "", *(f"- {failure}" for failure in sorted(failures))]
    return "\n".join(lines)


def main() -> None:
    """Print the tables of one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--engine", default="rtp_jax")
    arguments = parser.parse_args()
    print(tables(json.loads(arguments.file.read_text()), arguments.engine))


if __name__ == "__main__":
    main()
