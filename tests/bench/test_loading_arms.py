"""The loading benchmark: its arms hold what they should, and its mount takes its time."""

import os
import time

import jax
import numpy as np
import pytest

from bench.loading_arms import ARMS, Disk, Mount
from bench.synthetic import Shapes, write
from rtp_jax.weights.checkpoint import read_checkpoint

DENSE = Shapes(layers=2, hidden=32, mlp=64, queries=64, kv=32, vocab=128)
MOE = Shapes(layers=2, hidden=32, mlp=16, queries=64, kv=32, vocab=128, experts=8, files=3)


@pytest.fixture(params=[DENSE, MOE], ids=["dense", "moe"])
def model(request, tmp_path):
    write(tmp_path / "model", request.param)
    headers = read_checkpoint(tmp_path / "model").files
    return tmp_path / "model", request.param, sum(h.size - h.data_start for h in headers)


def test_arms_on_one_device_hold_the_same_numbers(model):
    folder, shapes, size = model
    sums = {}
    for name, arm in ARMS.items():
        arrays = arm(folder, shapes, jax.devices()[:1], Disk().read)
        assert sum(array.nbytes for array in arrays) == size
        sums[name] = sum(float(np.asarray(a, np.float64).sum()) for a in arrays)
    assert len({round(total, 6) for total in sums.values()}) == 1, sums


@pytest.mark.parametrize("ranks", [1, 4])
def test_of_the_arms_only_structure_reads_more_than_once(model, ranks):
    folder, shapes, size = model
    devices = jax.devices()[:1] * ranks
    for name, times in (("structure", ranks), ("once", 1)):
        disk = Disk()
        arrays = ARMS[name](folder, shapes, devices, disk.read)
        assert disk.num_bytes == times * size
        embed = shapes.vocab * shapes.hidden * 2 // ranks  # split, as most of a model is
        assert sum(array.nbytes == embed for array in arrays) >= ranks
        assert size <= sum(array.nbytes for array in arrays) < 1.2 * size


def test_ours_reads_forward_from_a_mount(model):
    folder, shapes, size = model
    mount = Mount(rate=1e12, seek_s=0)
    ARMS["ours"](folder, shapes, jax.devices()[:1], mount.read)
    assert mount.num_bytes == size
    assert mount.num_seeks == len(list(folder.glob("*.safetensors")))


def test_a_mount_takes_its_time(tmp_path):
    (tmp_path / "a").write_bytes(bytes(3000))
    mount, memory = Mount(rate=1e5, seek_s=0.02), np.empty(1000, np.uint8)
    file = os.open(tmp_path / "a", os.O_RDONLY)
    started = time.perf_counter()
    for offset in (0, 1000, 0):  # the second goes on where the first ended
        assert mount.read(file, [memory], offset) == 1000
    os.close(file)
    assert mount.num_seeks == 2
    assert time.perf_counter() - started >= 3 * 0.01 + 2 * 0.02
