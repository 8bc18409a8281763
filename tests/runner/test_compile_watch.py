"""A compilation on the watched thread is counted, one on another thread is not."""

import threading

import jax
import numpy as np

from rtp_jax.runner.compile_watch import CompileWatch


def compile_something(factor: float) -> None:
    """Compile a program that nobody compiled before."""
    jax.jit(lambda x: x * factor + 1)(np.arange(7.0, dtype=np.float32))


def test_only_this_threads_compilations_count():
    watch = CompileWatch()
    compile_something(1.25)
    assert watch.count == 1
    other = threading.Thread(target=compile_something, args=(1.5,))
    other.start()
    other.join()
    assert watch.count == 1
