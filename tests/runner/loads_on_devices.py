"""What devices hold of any checkpoint is what one device holds, cut; `tests/parallel` runs this."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtp_jax.config import native_cache
from rtp_jax.engine.sharing import mesh_of
from rtp_jax.errors import FailedPrecondition
from rtp_jax.kernels.native import library, packing
from rtp_jax.layers.encoding import SCALES, VALUES, ZEROS
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.models.structure import Skeleton
from rtp_jax.parallel.devices import DeviceMesh, Devices, LoneDevice
from rtp_jax.quant.quantized_array import NATIVE, QuantizedArray
from rtp_jax.quant.schemes import PLAIN, SCHEMES
from rtp_jax.runner.encoders import encoders
from rtp_jax.runner.start import spread_over
from rtp_jax.weights.checkpoint import read_checkpoint
from rtp_jax.weights.loader import load
from rtp_jax.weights.reader import Reading
from tests.golden.quantized_layouts import CASES, save, tensors_of
from tests.weights.written import counted

FLOAT32 = np.dtype(np.float32)
# What two devices cannot share: columns in an order of their own, and half a block of fp8.
REFUSED = {name for name in CASES if "ordered" in name or "blocks" in name}

QUICK = {"gptq_zeros_128", "gptq_ordered_128", "packed_row", "float8_row"}


def devices(spec, size: int) -> Devices:
    every = jax.devices("cpu")
    return LoneDevice(every[0]) if size == 1 else DeviceMesh(every[:size], mesh_of(spec, size))


def loaded(folder: Path, size: int, native: str | None, scheme=PLAIN):
    """Load, and see to it that every byte is read once."""
    spec = read_spec(json.loads((folder / "config.json").read_text()))
    several = devices(spec, size)
    target = Target("cpu", FLOAT32, native=native, scheme=scheme, mesh=several.shape)
    bones = skeleton(spec, target)
    reading, read = counted(Reading())
    table = architecture(spec.architecture).weight_table(spec)
    arrays = load(
        folder,
        table,
        bones.stored,
        encoders=encoders(bones),
        spread=spread_over(several, bones),
        reading=reading,
    )
    files = read_checkpoint(folder).files
    assert sum(read) == sum(one.size - one.data_start for one in files)
    return bones, dict(zip(bones.held, bones.leaves(arrays), strict=True))


def unpacked(bones: Skeleton, path: str, array: jax.Array) -> np.ndarray:
    """Read a packed stack back: what each device holds of it, put together."""
    encoding = bones.encodings[path.removesuffix(VALUES)]
    rows, columns = encoding.parts
    stack = array if array.ndim == 3 else array[None]
    layers = []
    for blocks in np.asarray(stack):
        parts = [
            packing.unpack(
                QuantizedArray(
                    jnp.asarray(part[None]),
                    None,
                    encoding.scheme,
                    NATIVE,
                    encoding.outer,
                    encoding.inner,
                ),
                0,
                FLOAT32,
            )
            for part in np.split(blocks, rows * columns)
        ]
        layers.append(np.block([parts[i : i + columns] for i in range(0, rows * columns, columns)]))
    return np.stack(layers)


def check(folder: Path, native: str | None, scheme=PLAIN) -> None:
    (one, held), (two, shared) = (loaded(folder, n, native, scheme) for n in (1, 2))
    assert held.keys() == shared.keys()
    for path, array in shared.items():
        encoding = two.encodings.get(path.removesuffix(VALUES))
        if encoding is not None and encoding.layout == NATIVE:
            np.testing.assert_array_equal(
                unpacked(two, path, array), unpacked(one, path, held[path]), path
            )
        else:
            wanted = np.asarray(held[path])
            if path.endswith((SCALES, ZEROS)):  # of groups that may be parts of groups
                wanted = np.repeat(wanted, array.shape[-1] // wanted.shape[-1], axis=-1)
            np.testing.assert_array_equal(np.asarray(array), wanted, path)
        assert array.sharding.device_set == set(jax.devices("cpu")[:2])


@pytest.fixture(params=["off", "native"])
def native(request) -> str | None:
    if request.param == "off":
        return None
    if reason := library.load(native_cache()):
        pytest.skip(reason)
    found = library.loaded()
    assert found is not None
    return found.level


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.full) for n in CASES]
)
def test_checkpoints_that_come_quantized(name, native, tmp_path):
    written, _ = tensors_of(CASES[name])
    folder = save(tmp_path, written, CASES[name].config)
    if name not in REFUSED:
        check(folder, native)
        return
    with pytest.raises(FailedPrecondition, match="RTPJ-6023 PARTS_DO_NOT_FIT"):
        loaded(folder, 2, native)


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8", "plain"])
def test_numbers_that_are_encoded_while_they_load(tiny_model, native, scheme):
    check(tiny_model, native, SCHEMES.get(scheme, PLAIN))
