"""The part `kernels`: attention and products alone."""

from bench.gpu import attention_rows, matmul_rows
from bench.gpu.device import open_device
from bench.gpu.results import Results


def run(results: Results, *, dry: bool, only: str) -> None:
    """Check every kernel first, then time."""
    scale, limits = open_device(results, dry=dry)
    found = attention_rows.rows(scale, limits) + matmul_rows.rows(scale, limits)
    found.sort(key=lambda row: not row.name.startswith("check/"))  # what is wrong is known first
    results.run([row for row in found if only in row.name])
