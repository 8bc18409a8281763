"""Parts: they cover a tensor in order, keep rows together, and are shared out evenly."""

from pathlib import Path

import numpy as np
import pytest

from rtp_jax.weights.parts import Run, parts_of, shared_out
from rtp_jax.weights.safetensors import Header, Tensor


def header(*shapes, name="a"):
    tensors, begin = [], 0
    for i, shape in enumerate(shapes):
        end = begin + int(np.prod(shape)) * 2
        tensors.append(Tensor(f"{name}{i}", np.dtype(np.float16), shape, begin, end))
        begin = end
    return Header(Path(name), tuple(tensors), 100, (100 + begin, 0, 0), b"")


@pytest.mark.parametrize("together", [1, 4, 16])
@pytest.mark.parametrize("part_bytes", [1, 100, 1000, 10**6])
def test_parts_cover_tensors_in_order(together, part_bytes):
    file = header((40, 6), (), (0, 3), (7,), (5, 2, 3))
    parts = list(parts_of(Run(file, file.tensors), lambda _: together, part_bytes))
    assert [part.begin for part in parts] == [0, *[part.end for part in parts[:-1]]]
    assert parts[-1].end == file.tensors[-1].end
    for part in parts:
        assert part.size == int(np.prod(part.shape)) * 2
        start, end = part.rows or (0, 0)
        assert start % together == 0
        assert end % together == 0 or end == part.tensor.shape[0]
    last = [part.tensor.name for part in parts if part.is_last]
    assert last == [tensor.name for tensor in file.tensors]


def test_a_tensor_that_must_be_seen_whole_is_one_part():
    file = header((40, 6))
    (part,) = parts_of(Run(file, file.tensors), lambda _: None, 10)
    assert (part.rows, part.size) == (None, 480)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
def test_what_belongs_together_goes_to_one_process(processes):
    files = [header(*[(10,)] * 30, name="a"), header(*[(5,)] * 60, name="b")]
    names = [tensor.name for file in files for tensor in file.tensors]
    # The tensors of a matrix lie everywhere, also in two files.
    matrix_of = {name: i % 12 for i, name in enumerate(names) if i % 5}
    shares = shared_out(files, processes, matrix_of)
    homes = {t.name: i for i, share in enumerate(shares) for run in share for t in run.tensors}
    assert sorted(homes) == sorted(names)
    assert len({(matrix_of[name], homes[name]) for name in matrix_of}) == 12
    sizes = [sum(run.size for run in share) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * 100
    for run in (run for share in shares for run in share):
        ends = [tensor.end for tensor in run.tensors]
        assert [tensor.begin for tensor in run.tensors[1:]] == ends[:-1]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 9])
def test_processes_share_tensors_each_once_and_evenly(processes):
    files = [header(*[(10,)] * 30, name="a"), header(*[(5,)] * 60, name="b"), header(name="c")]
    shares = shared_out(files, processes)
    tensors = [tensor for share in shares for run in share for tensor in run.tensors]
    assert tensors == [tensor for file in files for tensor in file.tensors]
    sizes = [sum(run.size for run in share) for share in shares]
    assert max(sizes) - min(sizes) <= 2 * 20
    assert {run.header.path for share in shares for run in share} == {f.path for f in files}
