"""What can this machine do at most: reading memory, and multiplying?

    python -m bench.machine_limits

Every share of a limit in docs/performance.md is of these.  A small C program is compiled for
this processor and run on one core and on all of them; the best of several passes counts, because a
limit is what is possible.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from bench.record import machine, write_record

SOURCE = Path(__file__).with_suffix(".c")


def limits() -> dict[str, float]:
    """Measure; names end with the number of threads."""
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "limits")
        command = ["cc", "-O3", "-march=native", str(SOURCE), "-o", program, "-lpthread"]
        subprocess.run(command, check=True)
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: float(figure) for name, figure in map(str.split, lines.splitlines())}


def main(path: str | None) -> None:
    """Print one line for each limit."""
    print(machine())
    found = limits()
    for name, figure in found.items():
        print(f"{name:>16} {figure:>10.1f}")
    if path:
        write_record(path, "machine_limits", (), {"limits": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json")
    main(parser.parse_args().json)
