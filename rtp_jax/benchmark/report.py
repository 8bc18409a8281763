"""How are figures shown and kept?  A table on the terminal; JSON in a file, with its origin."""

import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from rtp_jax.errors import FailedPrecondition

LATENCY_ROWS = {
    "TTFT": "ttft_s",
    "TTFT from sending": "ttft_from_send_s",
    "TPOT": "tpot_s",
    "ITL": "itl_s",
    "gap between messages": "message_gap_s",
    "E2E": "e2e_s",
}
# Sending later than this after the arrival shows in the table: the figures then differ.
LATE_S = 1e-3


def machine() -> dict[str, object]:
    """Describe what this process runs on, without its name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average_1m": round(os.getloadavg()[0], 2),  # before the run
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Name the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # of an extra
    return found


def origin(bench: str, packages: Iterable[str]) -> dict[str, object]:
    """Say what was measured, when, on what and with which versions."""
    return {
        "bench": bench,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(packages),
    }


def check_writable(flag: str, path: str | None) -> None:
    """Refuse a file that could not be written, before the run and not after it."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise FailedPrecondition(
            f"RTPJ-5507 BENCH_FILE_UNWRITABLE: {flag} is {path}, and no such file can be made. Name"
            " a file in a folder that exists and may be written to.",
            field=flag.lstrip("-"),
        )


def write_json(path: str | None, record: Mapping[str, object]) -> None:
    """Write a record, at once or not at all."""
    if path is None:
        return
    partial = Path(f"{path}.partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align rows: the first column left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def shown(figures: Mapping) -> str:
    """Show the figures of one run."""
    lines = [
        f"{figures['num_completed']} of {figures['num_requests']} requests completed in"
        f" {figures['duration_s']:.2f} s: {figures['requests_per_s']:.2f} requests/s,"
        f" {figures['output_tokens_per_s']:.1f} output tokens/s",
        f"prompt tokens {_known(figures['prompt_tokens'])}, of them cached"
        f" {_known(figures['cached_tokens'])}; output tokens {figures['output_tokens']}",
    ]
    if figures["failures"]:
        each = ", ".join(f"{kind}: {count}" for kind, count in figures["failures"].items())
        lines.append(f"failed: {each}")
    if figures["num_short"]:
        lines.append(f"{figures['num_short']} outputs are shorter than asked")
    if "goodput" in figures:
        good = figures["goodput"]
        limits = ", ".join(f"{name} <= {s:g} s" for name, s in figures["slo_s"].items())
        lines.append(
            f"goodput ({limits}): {good['requests_per_s']:.2f} requests/s, {good['share']:.1%}"
        )
    rows: list[Sequence[str]] = [("ms", "p50", "p95", "p99", "mean", "max")]
    for name, key in LATENCY_ROWS.items():
        late = figures["sent_late_s"]["max"] > LATE_S
        if (found := figures[key]) is None or (key == "ttft_from_send_s" and not late):
            continue
        rows.append((name, *(f"{1e3 * found[k]:.2f}" for k in rows[0][1:])))
    return "\n".join([*lines, table(rows)])


def _known(value: int | None) -> str:
    return "unknown" if value is None else str(value)
