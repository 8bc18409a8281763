"""Modules that are read late: by one thread, whoever comes first."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rtp_jax.kernels import compat

NUM_THREADS = 8


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    """Write a module that takes a while to read."""
    (tmp_path / "slowly_read.py").write_text("import time\ntime.sleep(0.3)\nanswer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "slowly_read"
    sys.modules.pop("slowly_read", None)


def test_a_module_is_whole_for_every_thread(slow_module):
    module, start = compat.lazy(slow_module), Barrier(NUM_THREADS)

    def use(_: int) -> int:
        start.wait()
        return module.answer

    with ThreadPoolExecutor(NUM_THREADS) as executor:
        assert list(executor.map(use, range(NUM_THREADS))) == [42] * NUM_THREADS


def test_a_module_is_read_only_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "never_read.py").write_text('raise AssertionError("it was read")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    module = compat.lazy("never_read")
    sys.modules.pop("never_read")
    with pytest.raises(AssertionError, match="it was read"):  # only now
        _ = module.answer


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        compat.lazy("no_such_module")
