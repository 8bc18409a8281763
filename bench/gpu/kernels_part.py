"""The part `kernels`: attention and products alone."""

from pathlib import Path

from bench.gpu import attention_rows, matmul_rows, tune
from bench.gpu.device import open_device
from bench.gpu.results import Results
from rtp_jax.kernels.tuned import FOLDER


def run(results: Results, *, dry: bool, only: str) -> None:
    """Check every kernel first, then time."""
    scale, limits = open_device(results, dry=dry)
    found = attention_rows.rows(scale, limits) + matmul_rows.rows(scale, limits)
    found.sort(key=lambda row: not row.name.startswith("check/"))  # what is wrong is known first
    results.run([row for row in found if only in row.name])
    results.add("over_bfloat16", matmul_rows.over_bfloat16(results.content["rows"]))


def run_tuning(results: Results, *, dry: bool, only: str, out: Path) -> None:
    """Time all tilings, and write a table: for the kernels to read, or beside a dry run's rows."""
    scale, limits = open_device(results, dry=dry)
    results.run([row for row in tune.rows(scale, limits) if only in row.name])
    tune.write_table(results, out if dry else FOLDER)
