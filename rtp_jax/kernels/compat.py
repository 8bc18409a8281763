"""What differs between the versions of jax, and what is private in it: here and nowhere else."""

import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any

import jax

# Mosaic GPU before 0.11 infers no layouts of its own and has no interpreter that finds races.
HAS_MOSAIC_GPU = jax.__version_info__ >= (0, 11)


class Lazy:
    """A module that is read when something of it is first used, by one thread at a time.

    Programs are traced by several threads, and before Python 3.12.4 the loader hands a module that
    is half read to whoever comes second.
    """

    _reading = threading.RLock()

    def __init__(self, module: ModuleType):
        self._module = module

    def __getattr__(self, name: str) -> Any:
        with self._reading:
            return getattr(self._module, name)


def lazy(name: str) -> Any:
    """Name a module that is read when something of it is first used.

    Pallas takes seconds to import, which a program for the CPU should not pay.
    """
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return Lazy(module)


if HAS_MOSAIC_GPU:
    _simulator = lazy("jax._src.pallas.mosaic_gpu.interpret.gpu_callbacks")


def races_found() -> bool:
    """Say whether the last GPU kernel that was simulated, to look for races, had one."""
    return _simulator.get_races().races_found
