"""Loading: what was written comes out, from any order, files, dtype and block size, read once."""

import os
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from rtp_jax.errors import CheckpointError
from rtp_jax.weights import safetensors
from rtp_jax.weights.convert import aligned
from rtp_jax.weights.encoder import Encoder, WrongPart
from rtp_jax.weights.loader import load
from rtp_jax.weights.reader import Reading
from rtp_jax.weights.table import Weight, WeightTable, in_each_layer, transposed
from tests.weights.written import (
    DTYPES,
    encoded,
    expected,
    parameters,
    quantizers,
    save,
    shuffled,
    table,
    tensors,
)


def check(loaded, source, dtype=np.float32):
    wanted = expected(source, dtype)
    assert loaded.keys() == wanted.keys()
    for path, array in loaded.items():
        assert isinstance(array, jax.Array)
        assert array.dtype == dtype
        np.testing.assert_array_equal(np.asarray(array), wanted[path], err_msg=path)


@pytest.mark.capability("safetensors")
@pytest.mark.parametrize("num_files", [1, 2, 5])
@pytest.mark.parametrize("block_bytes", [61, 4096, 1 << 24])
def test_a_checkpoint_of_any_files_comes_out(tmp_path, num_files, block_bytes):
    save(tmp_path, tensors(), num_files)
    check(
        load(tmp_path, table(), parameters(), reading=Reading(block_bytes=block_bytes)), tensors()
    )


@pytest.mark.parametrize("seed", range(8))
def test_tensors_may_lie_in_any_order(tmp_path, seed):
    source = tensors(list(DTYPES.values())[seed % 3], seed)
    (tmp_path / "model.safetensors").write_bytes(shuffled(source, seed))
    check(load(tmp_path, table(), parameters(), reading=Reading(block_bytes=1000 + seed)), source)


@pytest.mark.capability("safetensors")
@pytest.mark.parametrize("target", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_floats_are_rounded_to_the_dtype_of_the_model(tmp_path, source, target):
    numbers = tensors(DTYPES[source])
    save(tmp_path, numbers)
    loaded = load(tmp_path, table(), parameters(DTYPES[target]), reading=Reading(block_bytes=5000))
    check(loaded, numbers, DTYPES[target])


@pytest.mark.parametrize("num_files", [1, 4])
def test_every_byte_is_read_once(tmp_path, num_files):
    save(tmp_path, tensors(), num_files)
    steps = []
    load(tmp_path, table(), parameters(), progress=steps.append, reading=Reading(block_bytes=2048))
    size = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert steps[-1].bytes_done == steps[-1].bytes_total == size
    assert steps[-1].tensors_done == steps[-1].tensors_total == len(tensors())
    done = [(s.bytes_done, s.tensors_done, s.seconds) for s in steps]
    assert done == sorted(done)
    assert len(steps) >= size // 2048


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the host copies to other devices")
@pytest.mark.parametrize("dtype", DTYPES)
def test_placing_on_a_cpu_copies_nothing(tmp_path, dtype):
    save(tmp_path, tensors())
    pointers = {}

    def place(path, array):
        pointers[path] = array.ctypes.data
        return jax.device_put(array)

    loaded = load(tmp_path, table(), parameters(DTYPES[dtype]), place=place)
    assert {path: a.unsafe_buffer_pointer() for path, a in loaded.items()} == pointers


@pytest.mark.parametrize("part_bytes", [100, 1000])
@pytest.mark.parametrize("source", DTYPES)
def test_tensors_may_come_in_parts(tmp_path, monkeypatch, source, part_bytes):
    monkeypatch.setattr("rtp_jax.weights.loader.PART", part_bytes)
    numbers = tensors(DTYPES[source])
    save(tmp_path, numbers, 2)
    check(load(tmp_path, table(), parameters()), numbers)


@pytest.mark.parametrize("part_bytes", [100, 1 << 20])
def test_rows_are_encoded_as_they_come(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr("rtp_jax.weights.loader.PART", part_bytes)
    monkeypatch.setattr("rtp_jax.weights.loader.STAGING", 10_000)
    save(tmp_path, tensors(DTYPES["bf16"]))
    encoders = quantizers(parameters())
    loaded = load(tmp_path, table(), parameters(), encoders=encoders)
    wanted = encoded(expected(tensors(DTYPES["bf16"])), encoders)
    assert loaded.keys() == wanted.keys()
    for path, array in loaded.items():
        np.testing.assert_array_equal(np.asarray(array), wanted[path], err_msg=path)


def test_an_encoder_that_fails_ends_the_load(tmp_path):
    def encode(rows, into):
        raise MemoryError

    save(tmp_path, tensors())
    encoders = {path: e._replace(encode=encode) for path, e in quantizers(parameters()).items()}
    with pytest.raises(MemoryError):
        load(tmp_path, table(), parameters(), encoders=encoders)


def summing(raise_wrong: bool = False):
    """Give what stores a matrix as two tensors, and maybe a third, and holds their sum."""

    def encode(parts, into):
        if raise_wrong:
            raise WrongPart("b", "it is not what config.json says")
        into["l.sum"][:] = sum(parts.values())

    names = {"l.a": "a", "l.b": "b", "l.c": "c"}
    encoder = Encoder(names, {"l.sum": jax.ShapeDtypeStruct((2, 4, 3), np.float32)}, encode)
    random = np.random.default_rng(0)
    source = {
        f"l.{i}.{name}": random.standard_normal((4, 3)).astype(np.float32)
        for i in range(2)
        for name in "abc"
    }
    shapes = {path: jax.ShapeDtypeStruct((2, 4, 3), np.float32) for path in names}
    rows = in_each_layer("l.{i}", "l.{i}", [Weight(name, name) for name in "abc"], 2)
    return source, WeightTable(rows), shapes, dict.fromkeys(names, encoder)


@pytest.mark.parametrize("seed", range(3))
def test_a_matrix_may_be_stored_as_several_tensors_in_any_files(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("rtp_jax.weights.loader.STAGING", 4096)  # what waits takes none of it
    source, rows, shapes, encoders = summing()
    save(tmp_path, source, 3, seed)
    loaded = load(tmp_path, rows, shapes, encoders=encoders)
    wanted = np.stack([sum(source[f"l.{i}.{name}"] for name in "abc") for i in range(2)])
    np.testing.assert_allclose(np.asarray(loaded["l.sum"]), wanted, rtol=1e-6)
    assert loaded.keys() == {"l.sum"}


def test_a_tensor_that_contradicts_the_checkpoint_is_named(tmp_path):
    source, rows, shapes, encoders = summing(raise_wrong=True)
    save(tmp_path, source)
    message = (
        r"RTPJ-3103 QUANTIZED_TENSOR_WRONG: .*model\.safetensors, tensor l\.[01]\.b: it is not"
    )
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path, rows, shapes, encoders=encoders)


def test_memory_of_parameters_comes_from_who_calls(tmp_path):
    given = []

    def allocate(shape, dtype):
        given.append(aligned(shape, dtype))
        return given[-1]

    save(tmp_path, tensors())
    loaded = load(tmp_path, table(), parameters(), allocate=allocate)
    assert sorted(a.nbytes for a in given) == sorted(a.nbytes for a in loaded.values())
    check(loaded, tensors())


def test_one_tensor_may_fill_several_parameters(tmp_path):
    source = {"a": np.arange(12, dtype=np.int8).reshape(3, 4)}
    save_file(source, tmp_path / "model.safetensors")
    rows = [Weight("a", "x"), Weight("a", "y", transposed)]
    shapes = {
        "x": jax.ShapeDtypeStruct((3, 4), jnp.int8),
        "y": jax.ShapeDtypeStruct((4, 3), jnp.int8),
    }
    loaded = load(tmp_path, WeightTable(rows), shapes)
    np.testing.assert_array_equal(np.asarray(loaded["x"]), source["a"])
    np.testing.assert_array_equal(np.asarray(loaded["y"]), source["a"].T)


def test_empty_and_scalar_tensors(tmp_path):
    source = {"none": np.zeros((0, 3), np.float32), "one": np.array(2.5, np.float32)}
    save_file(source, tmp_path / "model.safetensors")
    shapes = {name: jax.ShapeDtypeStruct(a.shape, jnp.bfloat16) for name, a in source.items()}
    loaded = load(tmp_path, WeightTable([Weight(n, n) for n in source]), shapes)
    assert loaded["none"].shape == (0, 3)
    assert float(loaded["one"]) == 2.5


def test_not_a_number_is_loaded_as_it_is(tmp_path):
    save_file({"a": np.array([np.nan, np.inf], np.float32)}, tmp_path / "model.safetensors")
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float16)}
    assert np.isnan(np.asarray(load(tmp_path, WeightTable([Weight("a", "a")]), shapes)["a"])[0])


def test_a_number_too_large_for_float16_is_refused(tmp_path):
    save_file({"a": np.array([1e9], ml_dtypes.bfloat16)}, tmp_path / "model.safetensors")
    shapes = {"a": jax.ShapeDtypeStruct((1,), jnp.float16)}
    with pytest.raises(CheckpointError, match=r"RTPJ-3102 NUMBER_TOO_LARGE.*tensor a: .*bfloat16"):
        load(tmp_path, WeightTable([Weight("a", "a")]), shapes)


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_what_does_not_fit_stops_the_load_before_a_tensor_is_read(tmp_path, damage, monkeypatch):
    source = tensors()
    match damage:
        case "missing":
            del source["model.layers.2.q.bias"]
        case "extra":
            source["model.layers.2.q.bias.g_idx"] = np.zeros(1, np.float32)
        case _:
            source["model.layers.2.q.bias"] = np.zeros(5, np.float32)
    save(tmp_path, source, 2)
    monkeypatch.setattr("rtp_jax.weights.loader.read_parts", None)
    with pytest.raises(CheckpointError, match=r"RTPJ-3[01]01 .*model\.layers\.2\.q\.bias"):
        load(tmp_path, table(), parameters())


def test_a_place_that_fails_ends_the_load_and_its_thread(tmp_path):
    save(tmp_path, tensors())

    def place(path, array):
        raise MemoryError(path)

    with pytest.raises(MemoryError):
        load(tmp_path, table(), parameters(), place=place, reading=Reading(block_bytes=100))
    assert not [
        t for t in threading.enumerate() if t.name.startswith(("read-weights", "place-weights"))
    ]


def test_a_file_that_is_cut_while_it_is_loaded_is_refused(tmp_path):
    save(tmp_path, tensors())
    path = tmp_path / "model.safetensors"

    def replace(progress):
        os.truncate(path, 200)

    with pytest.raises(CheckpointError, match="RTPJ-3100 FILE_CHANGED"):
        load(tmp_path, table(), parameters(), progress=replace, reading=Reading(block_bytes=512))


def test_the_reader_agrees_with_the_library_on_dtypes(tmp_path):
    kinds = [dtype for dtype in safetensors.DTYPES.values() if dtype.kind in "biuf"]
    source = {str(dtype): np.ones(3, dtype) for dtype in kinds}
    save_file(source, tmp_path / "model.safetensors")
    header = safetensors.read_header(tmp_path / "model.safetensors")
    assert {str(tensor.dtype): tensor.dtype for tensor in header.tensors} == {
        name: array.dtype for name, array in source.items()
    }
