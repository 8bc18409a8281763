"""Modules that are read late: when they are used, and whole for whoever uses them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from rtp_jax.late_imports import late

NUM_THREADS = 8


@pytest.fixture
def slow_module(tmp_path, monkeypatch):
    """Write a module that takes a while to read."""
    (tmp_path / "slowly_read.py").write_text("import time\ntime.sleep(0.3)\nanswer = 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "slowly_read"
    sys.modules.pop("slowly_read", None)


def test_a_module_is_whole_for_every_thread(slow_module):
    module, start = late(slow_module), Barrier(NUM_THREADS)

    def use(_: int) -> int:
        start.wait()
        return module.answer

    with ThreadPoolExecutor(NUM_THREADS) as executor:
        assert list(executor.map(use, range(NUM_THREADS))) == [42] * NUM_THREADS


def test_a_module_is_read_only_when_it_is_used(slow_module):
    module = late(slow_module)
    assert slow_module not in sys.modules
    assert module.answer == 42
    assert slow_module in sys.modules


def test_a_module_that_is_not_there_is_named_when_it_is_used():
    module = late("no_such_module")
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _ = module.anything
