"""Does every program compile to sm_90a as it should?  Prints a table; ends with 1 if one does not.

    python -m tools.gpu_gate [--full] [--only TEXT] [--list] [--json FILE]

Without a GPU: the compiler is fetched once (`plugins.py`), and nothing is run.  Speed cannot be
seen here; what can are kernels that fall back, spill or take too much shared memory, and steps that
copy their pages or need more memory than was planned.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from tools.gpu_gate import catalogue
from tools.gpu_gate.gate import run
from tools.gpu_gate.plugins import requirements
from tools.gpu_gate.report import Report, complaints

MB = 1e6


def row(report: Report) -> str:
    """Show one program on a line."""
    kernels = " ".join(f"{kernel.name}[{kernel.registers} regs]" for kernel in report.kernels)
    return (
        f"{report.name:42}{report.lower_s + report.compile_s:6.1f} s"
        f"  temp {report.temp_bytes / MB:8.1f} MB  alias {report.alias_bytes / MB:9.1f} MB"
        f"  weights copied {report.copied_weights_bytes / MB:7.1f} MB"
        f"  shared {report.shared_bytes / 1024:3.0f} KB  {kernels}"
    )


def main() -> int:
    """Compile, print, and count what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="every program, with all layers")
    parser.add_argument("--only", default="", help="programs with this text in their name")
    parser.add_argument("--list", action="store_true", help="list the programs and end")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cases = catalogue.catalogue()
    names = list(cases) if arguments.full or arguments.only else catalogue.quick()
    names = [name for name in names if arguments.only in name]
    if arguments.list or not names:
        print("\n".join(names) or f"no program has {arguments.only!r} in its name")
        return not names
    began, wrong = time.monotonic(), 0

    def show(report: Report) -> None:
        nonlocal wrong
        found = complaints(report, cases[report.name].expected)
        wrong += bool(found)
        print("\n".join([row(report), *(f"    WRONG: {one}" for one in found)]), flush=True)

    reports = run(names, workers=arguments.workers, progress=show)
    seconds = time.monotonic() - began
    print(f"{len(names)} programs, {wrong} wrong, {seconds:.0f} s ({', '.join(requirements())})")
    if arguments.json:
        content = {
            "compiler": requirements(),
            "seconds": round(seconds, 1),
            "programs": [report.as_json() for report in reports.values()],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
