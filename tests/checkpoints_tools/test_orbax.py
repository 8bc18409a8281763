"""Orbax: its library restores what we write, to any mesh, and we read all that it writes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from checkpoints_tools.source import open_source
from rtp_jax import Engine, SamplingParams
from rtp_jax.errors import CheckpointError
from rtp_jax.weights.checkpoint import read_checkpoint
from tests.checkpoints_tools.written import assert_same, every_dtype, read, run, save

LAYOUTS = [(ocdbt, zarr3) for ocdbt in (False, True) for zarr3 in (False, True)]
# Of orbax-checkpoint 0.12.8, about its own folders of one process.
pytestmark = pytest.mark.filterwarnings("ignore")


def nested() -> dict:
    """A tree as training code has it: mappings, lists, jax and NumPy arrays, a number, nothing."""
    random = np.random.default_rng(3)
    return {
        "params": {
            "dense": {"kernel": jnp.arange(12, dtype=jnp.bfloat16).reshape(3, 4)},
            "list": [random.standard_normal((5, 2)).astype(np.float32), np.arange(3)],
            "f8": np.arange(4).astype(ml_dtypes.float8_e4m3fn),
            "large": np.arange(1 << 12, dtype=np.int32).reshape(64, 64),
        },
        "step": 7,
        "empty": {},
    }


FLAT = {
    "params.dense.kernel",
    "params.list.0",
    "params.list.1",
    "params.f8",
    "params.large",
    "step",
}


def save_by_orbax(folder, tree, *, ocdbt: bool = True, zarr3: bool = False) -> None:
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


@pytest.mark.capability("checkpoint tools")
@pytest.mark.parametrize(("ocdbt", "zarr3"), LAYOUTS)
def test_we_read_what_orbax_writes(tmp_path, ocdbt, zarr3):
    tree = nested()
    save_by_orbax(tmp_path / "orbax", tree, ocdbt=ocdbt, zarr3=zarr3)
    assert run("convert", tmp_path / "orbax", tmp_path / "out", "--to", "safetensors") == 0
    found, params = read(tmp_path / "out"), tree["params"]
    assert found.keys() == FLAT
    assert_same(
        {name: found[name] for name in FLAT - {"step"}},
        {
            "params.dense.kernel": np.asarray(params["dense"]["kernel"]),
            "params.list.0": params["list"][0],
            "params.list.1": params["list"][1],
            "params.f8": params["f8"],
            "params.large": params["large"],
        },
    )
    assert found["step"] == 7


def test_orbax_reads_what_we_write(tmp_path):
    tensors = every_dtype()
    save(tmp_path / "source", tensors)
    assert run("convert", tmp_path / "source", tmp_path / "orbax", "--to", "orbax") == 0
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "orbax")
        described = checkpointer.metadata(tmp_path / "orbax")
    assert_same({name: np.asarray(array) for name, array in restored.items()}, tensors)
    assert described is not None


def test_orbax_restores_to_devices_of_its_choice(tmp_path):
    tensors = {"a": np.arange(64, dtype=np.float32).reshape(8, 8)}
    save(tmp_path / "source", tensors)
    assert run("convert", tmp_path / "source", tmp_path / "orbax", "--to", "orbax") == 0
    mesh = jax.make_mesh((1,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("tensor"))
    wanted = {"a": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=spread)}
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "orbax", wanted)
    assert restored["a"].sharding == spread
    np.testing.assert_array_equal(np.asarray(restored["a"]), tensors["a"])


def test_a_large_array_is_read_in_blocks(tmp_path):
    array = np.random.default_rng(0).standard_normal((5 << 10, 1 << 10)).astype(np.float32)
    save_by_orbax(tmp_path / "orbax", {"a": array})
    (tensor,) = (source := open_source(str(tmp_path / "orbax"))).tensors
    pieces = [*source.read(tensor)]
    assert b"".join(piece.tobytes() for piece in pieces) == array.tobytes()


def test_links_in_an_orbax_folder_are_refused(tmp_path):
    save(tmp_path / "source", every_dtype())
    assert run("convert", tmp_path / "source", tmp_path / "orbax", "--to", "orbax") == 0
    chunk = tmp_path / "orbax" / "model.f32.weight" / "0"
    chunk.unlink(missing_ok=True)
    chunk.symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match=r"RTPJ-3608 ORBAX_INVALID.* is a link"):
        open_source(str(tmp_path / "orbax"))


def test_the_engine_loads_what_we_write(tmp_path, tiny_model, program_cache):
    assert run("convert", tiny_model, tmp_path / "orbax", "--to", "orbax") == 0
    params = SamplingParams(temperature=0, max_tokens=4)
    options = {"max_model_len": 64, "max_num_seqs": 2, "deterministic": True}
    tokens = []
    for folder in (tiny_model, tmp_path / "orbax"):
        with Engine(str(folder), compile_cache=str(program_cache), **options) as engine:
            (output,) = engine.generate(["pages of a step"], params, use_tqdm=False)
        tokens.append(output.outputs[0].token_ids)
    assert tokens[0] == tokens[1]


def test_the_engine_reads_plain_arrays_of_orbax(tmp_path):
    tensors = every_dtype()
    save(tmp_path / "source", tensors)
    assert run("convert", tmp_path / "source", tmp_path / "orbax", "--to", "orbax") == 0
    found = read_checkpoint(tmp_path / "orbax")
    assert {n: (t.dtype, t.shape) for n, t in found.tensors().items()} == {
        name: (array.dtype, array.shape) for name, array in tensors.items()
    }
    assert found.size == sum(array.nbytes for array in tensors.values())
    chunk = tmp_path / "orbax" / "model.i64.weight" / "0.0.0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="RTPJ-3608 ORBAX_INVALID"):
        read_checkpoint(tmp_path / "orbax")


@pytest.mark.parametrize(("ocdbt", "zarr3"), LAYOUTS)
def test_the_engine_says_how_to_convert_other_arrays(tmp_path, ocdbt, zarr3):
    save_by_orbax(tmp_path / "orbax", nested(), ocdbt=ocdbt, zarr3=zarr3)
    with pytest.raises(CheckpointError, match=r"RTPJ-3035 ORBAX_NOT_PLAIN.*rtp-jax-ckpt convert"):
        read_checkpoint(tmp_path / "orbax")
