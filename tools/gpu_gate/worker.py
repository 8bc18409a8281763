"""Compiles named programs of a catalogue for the GPU and prints a report of each.

    python -m tools.gpu_gate.worker CATALOGUE NAME...

`gate.py` starts it, in the environment of `plugins.py`: a process with a CUDA plugin in it is not
one to do anything else in.  CATALOGUE is a module with `catalogue()`.
"""

import importlib
import json
import os
import sys
import tempfile

import jax
from jax.errors import JaxRuntimeError

from tools.gpu_gate.dumps import Capture
from tools.gpu_gate.hlo import Program as Optimized
from tools.gpu_gate.plugins import MARK
from tools.gpu_gate.report import Kernel, Report
from tools.gpu_gate.target import Target

COPY_BYTES = 1 << 16  # smaller copies of weights are norms and biases


def report_of(
    name: str, case, target: Target, capture: Capture, known: dict[str, Kernel]
) -> Report:
    """Compile one program; what fails is a report as well.

    A kernel that an earlier program had is not compiled again, so `known` remembers the worst of
    each name.
    """
    try:
        program = case.make()
        compiled, lower_s, compile_s = target.compile(program)
    except (JaxRuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        capture.take()
        return Report(name, error=f"{type(error).__name__}: {error}"[:2000])
    fresh, shared_bytes = capture.take()
    for kernel in fresh:
        if kernel.name not in known or kernel.spill_bytes >= known[kernel.name].spill_bytes:
            known[kernel.name] = kernel
    memory, optimized = compiled.memory_analysis(), Optimized(compiled.as_text())
    calls = optimized.custom_calls()
    names = {call.partition(":")[2] for call in calls} - {kernel.name for kernel in fresh}
    kv_bytes = case.expected.kv_bytes
    copies = optimized.writes(kv_bytes) if kv_bytes else ()
    donated = [leaf for i in program.donated for leaf in jax.tree.leaves(program.arguments[i])]
    return Report(
        name,
        lower_s=round(lower_s, 2),
        compile_s=round(compile_s, 2),
        custom_calls=dict(calls),
        kernels=fresh + [known[name] for name in sorted(names) if name in known],
        shared_bytes=shared_bytes,
        donated_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in donated),
        alias_bytes=memory.alias_size_in_bytes,
        temp_bytes=memory.temp_size_in_bytes,
        kv_bytes=kv_bytes,
        kv_copies=[f"{operation} as {one.name}" for one, operation in copies],
        copied_weights_bytes=optimized.copied_weights(case.num_weights(program), COPY_BYTES),
    )


def main(module: str, names: list[str]) -> None:
    """Compile each named program; every report is printed as soon as it is there."""
    catalogue = importlib.import_module(module).catalogue()
    target, known = Target(), {}
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    with tempfile.TemporaryFile(buffering=0) as file:
        capture = Capture(file)
        for name in names:
            report = report_of(name, catalogue[name], target, capture, known)
            print(MARK + json.dumps(report.as_json()), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
