"""KV schemes: which layers keep KV how, in which groups, and how many bytes that is."""

import dataclasses

import pytest

from rtp_jax.config import CacheConfig, ModelConfig, SchedulerConfig
from rtp_jax.engine.build import model_memory
from rtp_jax.errors import InvalidArgument
from rtp_jax.models.registry import read_spec
from rtp_jax.quant.kv_schemes import KV_SCHEMES, kv_layers
from rtp_jax.quant.schemes import schemes_of
from rtp_jax.runner.memory_plan import plan_memory
from tools.model_shapes import config_of


def test_layers_of_one_scheme_are_a_group():
    kv = kv_layers(5, "int8", "0:bfloat16, 4:bfloat16, 2:fp8")
    assert [scheme.name for scheme in kv.groups] == ["bfloat16", "int8", "fp8"]
    assert kv.group_of == (0, 1, 2, 1, 0)
    assert [kv.layers_in(group) for group in range(3)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("scheme", "exceptions", "described"),
    [
        ("int8", None, "int8"),
        ("int8", "0-3:fp8", "fp8"),
        ("int8", "3:bfloat16,0-1:bfloat16", "0-1:bfloat16,2:int8,3:bfloat16"),
        ("bfloat16", "2:int8", "0-1:bfloat16,2:int8,3:bfloat16"),
    ],
)
def test_equal_layers_make_equal_words_that_can_be_given(scheme, exceptions, described):
    kv = kv_layers(4, scheme, exceptions)
    assert kv.describe() == described
    if ":" in described:
        assert kv_layers(4, "float32", described) == kv


@pytest.mark.parametrize(
    ("exceptions", "reason"),
    [
        ("0-3", "'0-3', and it does not read like"),
        ("bfloat16", "'bfloat16', and it does not read like"),
        ("-1:int8", "'-1:int8', and it does not read like"),
        ("1:int4", "'1:int4', and int4 is none of float32, bfloat16, int8, fp8"),
        ("2-4:int8", "'2-4:int8', and the model has layers 0-3"),
        ("3-2:int8", "'3-2:int8', and the model has layers 0-3"),
        ("0-2:int8,2:fp8", "'2:fp8', and layer 2 is named twice"),
    ],
)
def test_exceptions_that_mean_nothing_are_refused(exceptions, reason):
    with pytest.raises(InvalidArgument) as refused:
        kv_layers(4, "bfloat16", exceptions)
    assert str(refused.value).startswith(f"RTPJ-1102 KV_LAYERS_INVALID: kv_layers has {reason}")
    assert refused.value.field == "kv_layers"


def test_scales_count():
    # A key and a value of each of 4 heads of 64, and a float32 each where there are scales.
    assert kv_layers(3, "bfloat16").bytes_per_token(4, 64) == 3 * 2 * 4 * 64 * 2
    assert kv_layers(3, "int8").bytes_per_token(4, 64) == 3 * 2 * 4 * (64 + 4)
    mixed = kv_layers(3, "fp8", "1:float32").bytes_per_token(4, 64)
    assert mixed == 2 * 2 * 4 * (64 + 4) + 2 * 4 * 64 * 4


@pytest.mark.parametrize("kv_dtype", ["int8", "fp8"])
@pytest.mark.parametrize(("model", "head_dim"), [("qwen3-0.6b", 128), ("llama-3.1-8b", 64)])
@pytest.mark.capability("quantized KV")
def test_nearly_twice_the_tokens_fit_into_the_same_memory(model, head_dim, kv_dtype):
    spec = dataclasses.replace(read_spec(config_of(model)), head_dim=head_dim)

    def tokens(scheme: str) -> int:
        plan = plan_memory(
            model_memory(spec, schemes_of(None), "bfloat16", kv_layers(spec.num_layers, scheme)),
            model=ModelConfig(max_model_len=4096),
            cache=CacheConfig(kv_memory=1 << 30),
            scheduler=SchedulerConfig(),
            platform="cuda",
            free_device_bytes=16 << 30,
        )
        return plan.num_pages * plan.page_size

    assert tokens(kv_dtype) >= 1.85 * tokens("bfloat16")


def test_every_scheme_can_be_asked_for():
    (knob,) = (one for one in CacheConfig.__dataclass_fields__.values() if one.name == "kv_dtype")
    assert set(knob.metadata["choices"]) == {"auto", *KV_SCHEMES}
