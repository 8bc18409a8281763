"""Which models so many devices can share, and what is said where they cannot."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from rtp_jax import Engine
from rtp_jax.config import EngineConfig
from rtp_jax.engine.build import model_memory
from rtp_jax.engine.kv_choice import choose_kv_layers
from rtp_jax.engine.sharing import in_one_memory, mesh_of, share
from rtp_jax.errors import FailedPrecondition, InvalidArgument
from rtp_jax.layers.matrix import Matrix
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import read_spec
from rtp_jax.parallel.axes import MeshShape
from rtp_jax.quant.kv_schemes import kv_layers
from rtp_jax.quant.schemes import PLAIN, SCHEMES
from rtp_jax.runner.device import find_devices
from rtp_jax.weights.matrix_format import MatrixFormat
from tests.tiny_model import LLAMA


@pytest.mark.parametrize(
    ("config", "size", "reason"),
    [
        ({}, 3, "4 query heads, 100 ids in its vocabulary, 2 KV heads"),
        ({}, 8, "4 query heads, 100 ids in its vocabulary"),
        ({"intermediate_size": 98}, 4, "98 features in its MLP"),
        ({"vocab_size": 101}, 2, "101 ids in its vocabulary"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_does(config, size, reason):
    spec = read_spec({**LLAMA, **config})
    with pytest.raises(InvalidArgument, match=f"RTPJ-1106 PARTS_UNEVEN: .*has {reason}") as refused:
        mesh_of(spec, size)
    assert refused.value.field == "tensor_parallel_size"
    sizes = str(refused.value).rpartition("tensor_parallel_size to ")[2].rstrip(".").split(" or ")
    for fewer in sizes:
        assert mesh_of(spec, int(fewer)).size == int(fewer) < size


def test_what_devices_hold_together_is_the_model_and_what_is_there_twice():
    spec = read_spec({**LLAMA, "vocab_size": 96})
    whole = model_memory(spec, (PLAIN, PLAIN), "float32", kv_layers(3, "float32"))
    shape = MeshShape(2, 2)
    one, all_ = share(whole, spec, shape), in_one_memory(whole, spec, shape)
    assert (one.num_heads, one.num_kv_heads, one.mlp_size) == (1, 1, 24)
    assert all_.weight_bytes == 4 * one.weight_bytes
    assert all_.kv_bytes_per_token == 4 * one.kv_bytes_per_token == 2 * whole.kv_bytes_per_token
    norms, keys = 4 * (3 * 2 + 1) * 64, 4 * 3 * 2 * 64 * 2 * 16
    assert all_.weight_bytes == whole.weight_bytes + 3 * norms + keys


def test_more_devices_than_there_are(tiny_model, program_cache):
    assert len(jax.devices("cpu")) < 64  # and jax has begun, so there will be no more
    with pytest.raises(FailedPrecondition, match=r"RTPJ-4111 TOO_FEW_DEVICES: .*DEVICES=64"):
        find_devices("cpu", MeshShape(64, 1))
    with pytest.raises(
        FailedPrecondition, match="RTPJ-4111 TOO_FEW_DEVICES: tensor_parallel_size=2"
    ):
        Engine(str(tiny_model), compile_cache=str(program_cache), tensor_parallel_size=2)


def matrix(target: Target, inner: int, scheme) -> Matrix:
    return nnx.eval_shape(
        lambda: Matrix(("embed", 32), ("mlp", inner), target=target, scheme=scheme)
    )


def test_groups_of_a_row_that_devices_cannot_share():
    target = Target("cpu", jnp.dtype("float32"), mesh=MeshShape(4, 1), path="layers.mlp.down")
    assert matrix(target, 512, SCHEMES["int4"]).encoding.scheme.group == 128
    split = matrix(target, 256, SCHEMES["int4"]).encoding
    assert (split.whole, split.inner, split.scheme.group) == ((32, 256), 64, 64)
    reason = r"RTPJ-6023 PARTS_DO_NOT_FIT: .*192 columns of layers\.mlp\.down .*groups of 64 do"
    with pytest.raises(FailedPrecondition, match=reason):
        matrix(target, 192, SCHEMES["int4"])
    ordered = MatrixFormat("gptq", SCHEMES["int4"], ordered=True)
    target = target._replace(formats=(("layers.mlp.down", ordered),))
    with pytest.raises(FailedPrecondition, match=r"RTPJ-6023 PARTS_DO_NOT_FIT: .*act-order"):
        matrix(target, 512, PLAIN)


def test_layers_are_measured_on_one_device(tiny_model):
    config = EngineConfig.from_options(tensor_parallel_size=2)
    with pytest.raises(InvalidArgument, match="RTPJ-1101 CONFIG_INVALID: tensor_parallel_size=2"):
        choose_kv_layers(str(tiny_model), config, ["text"], budget=1.0, progress=print)
