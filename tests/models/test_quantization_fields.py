"""`quantization_config`: what each method's fields mean, and which are refused by name."""

import math
import re

import jax.numpy as jnp
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.layers.target import Target
from rtp_jax.models.fields import Fields
from rtp_jax.models.quantization_fields import read_quantization
from rtp_jax.models.quantized_matrices import head_is_quantized, matrix_bytes
from rtp_jax.models.registry import architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.modules import Quantization, is_simple
from tests.golden.quantized_layouts import CASES, CONFIG, with_quantization

LAYER = "model.layers.3.self_attn.q_proj"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}


def read(config: dict) -> Quantization:
    found = read_quantization(Fields({"quantization_config": config}))
    assert found is not None
    return found


def format_of(config: dict, module: str = LAYER) -> MatrixFormat | None:
    return read(config).format_of(module, is_head=module == "lm_head")


def compressed(**changes) -> dict:
    """Give a config of compressed-tensors; a name `group__weights__bits` is a place inside."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": {**weights, "group_size": 128}}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config |= {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    for path, value in changes.items():
        *places, name = path.split("__")
        inside = group if places else config
        for place in places[1:]:
            inside = inside.setdefault(place, {})
        inside[name] = value
    return config


def test_a_plain_checkpoint_has_none():
    assert read_quantization(Fields({})) is None
    assert read_spec(CONFIG).quantization is None


@pytest.mark.parametrize(
    ("config", "layout", "scheme", "group", "ordered"),
    [
        (GPTQ, "gptq", "int4", 128, False),
        ({**GPTQ, "group_size": -1, "sym": False}, "gptq", "int4_zeros", None, False),
        ({**GPTQ, "desc_act": True}, "gptq", "int4", 128, True),
        ({**GPTQ, "checkpoint_format": "gptq_v2"}, "gptq_v2", "int4", 128, False),
        ({**GPTQ, "dynamic": {}, "is_marlin_format": False}, "gptq", "int4", 128, False),
        ({**AWQ, "version": "GEMM"}, "awq", "int4_zeros", 128, False),
        (FP8, "tensor", "fp8", None, False),
        ({**FP8, "weight_block_size": [128, 128]}, "blocks_inverse", "fp8_block", 128, False),
        (compressed(), "packed", "int4", 128, False),
        (compressed(group__weights__symmetric=False), "packed", "int4_zeros", 128, False),
        (compressed(group__weights__actorder="group"), "packed", "int4", 128, True),
        (compressed(group__weights__actorder="weight"), "packed", "int4", 128, False),
        (compressed(group__weights__actorder="STATIC"), "packed", "int4", 128, False),
    ],
)
def test_what_a_method_says(config, layout, scheme, group, ordered):
    kind = format_of(config)
    assert kind is not None
    assert (kind.layout, kind.scheme.name, kind.scheme.group) == (layout, scheme, group)
    assert kind.ordered == ordered
    assert format_of(config, "lm_head") is None


def test_modules_that_are_left_out():
    listed = {**GPTQ, "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.up_proj"]]}
    assert format_of(listed) is not None
    assert format_of(listed, "model.layers.3.mlp.down_proj") is None
    for config in ({**AWQ, "modules_to_not_convert": ["self_attn", "layers.1"]},):
        assert format_of(config) is None
        assert format_of(config, "model.layers.1.mlp.up_proj") is None
        assert format_of(config, "model.layers.11.mlp.up_proj") is not None
    fp8 = {**FP8, "modules_to_not_convert": ["lm_head", LAYER], "ignored_layers": ["mlp.gate"]}
    assert format_of(fp8) is None
    assert format_of(fp8, "model.layers.3.mlp.gate") is None
    assert format_of(fp8, "model.layers.3.mlp.gate_proj") is not None


def test_the_head_is_quantized_where_a_config_says_so():
    assert format_of({**GPTQ, "lm_head": True}, "lm_head") is not None
    assert format_of(compressed(ignore=[]), "lm_head") is not None
    spec = read_spec(with_quantization(compressed(ignore=[])))
    assert head_is_quantized(spec)
    assert not head_is_quantized(read_spec(with_quantization(compressed())))


def test_names_come_before_patterns_and_both_before_classes():
    config = compressed()
    byte = {"num_bits": 8, "strategy": "channel", "symmetric": True, "type": "int"}
    group = config["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = {"targets": ["re:.*down_proj$"], "weights": byte}
    odd = {**group["weights"], "symmetric": False}
    config["config_groups"]["group_2"] = {
        "targets": ["model.layers.0.mlp.down_proj"],
        "weights": odd,
    }
    config["ignore"] += [r"re:.*\.1\.mlp\.(gate|up)_proj"]
    names = {
        LAYER: "int4",
        "model.layers.1.mlp.down_proj": "int8",
        "model.layers.0.mlp.down_proj": "int4_zeros",
    }
    for module, scheme in names.items():
        kind = format_of(config, module)
        assert kind is not None
        assert kind.scheme.name == scheme
    assert format_of(config, "model.layers.1.mlp.up_proj") is None
    assert format_of(config, "model.layers.2.mlp.up_proj") is not None


def test_groups_may_have_formats_of_their_own():
    config = compressed(format="mixed-precision", group__format="pack-quantized")
    assert format_of(config) == format_of(compressed())


def test_only_patterns_that_end_soon_are_searched():
    for fine in (
        r".*lm_head",
        r"model\.layers\.\d+\.mlp.*",
        r".*self_attn.(q|k|v)_proj$",
        r".*[0-3]",
    ):
        assert is_simple(fine)
        assert re.compile(fine)
    for bad in (r"(a*)*b", r"(a|a)+$", r".*.*.*.*x", r"(?=.*)x", r"a{1,9}{1,9}", "(", "x" * 400):
        assert not is_simple(bad)


REFUSED = [
    ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'.*Supported: gptq, awq, fp8"),
    ({**GPTQ, "bits": 3}, "bits is '3'.*Supported: 4"),
    ({**GPTQ, "bits": 8}, "bits is '8'"),
    ({**GPTQ, "group_size": 16}, "group_size is '16'.*32, 64, 128"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
    ({**GPTQ, "dynamic": {"-:.*q_proj": {}}}, "dynamic"),
    ({**GPTQ, "pack_dtype": "int8"}, "pack_dtype"),
    ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
    ({**AWQ, "version": "gemv"}, "version is 'gemv'.*gemm"),
    ({**AWQ, "zero_point": False}, "zero_point"),
    ({**AWQ, "backend": "llm-awq"}, "backend"),
    ({**FP8, "activation_scheme": "static"}, "activation_scheme is 'static'.*dynamic"),
    ({**FP8, "fmt": "e5m2"}, "fmt is 'e5m2'"),
    ({**FP8, "scale_fmt": "ue8m0"}, "scale_fmt"),
    ({**FP8, "weight_block_size": [64, 64]}, r"weight_block_size.*Supported: \[128, 128\]"),
    (compressed(format="marlin-24"), "format is 'marlin-24'"),
    (compressed(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
    (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config.format"),
    (compressed(transform_config={"config_groups": {"a": {}}}), "transform_config"),
    (compressed(group__output_activations={"num_bits": 8}), "output_activations"),
    (compressed(group__weights__num_bits=3), "pack-quantized of 3-bit int"),
    (compressed(group__weights__group_size=16), "group_size is '16'"),
    (compressed(group__weights__actorder="diagonal"), "actorder is 'diagonal'.*group, weight"),
    (
        compressed(group__weights__num_bits=8, group__weights__strategy="channel",
                   group__weights__symmetric=False),
        "symmetric is 'False'.*Only int4",
    ),
    (compressed(group__input_activations={"num_bits": 8, "dynamic": False}), "dynamic is 'False'"),
    (compressed(group__input_activations={"num_bits": 4, "dynamic": True}), "num_bits is '4'"),
    (compressed(ignore=["re:(a+)+$"]), r"ignore is .*pattern '\(a\+\)\+\$' could take long"),
    (compressed(group__targets=["re:(.*)*x"]), r"targets is .*could take long"),
]  # fmt: skip


@pytest.mark.parametrize(("config", "words"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(config, words):
    with pytest.raises(CheckpointError, match=words) as refused:
        read(config)
    assert refused.value.id == "RTPJ-3204"
    assert refused.value.field.startswith("quantization_config.")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "RTPJ-3201 .*no quantization_config.quant_method"),
        ({"quant_method": "gptq"}, "RTPJ-3201 .*no quantization_config.bits"),
        ({**GPTQ, "bits": "4"}, "RTPJ-3202 .*bits is '4', which must be a whole number"),
        ({**GPTQ, "modules_in_block_to_quantize": ["q"]}, "RTPJ-3202 .*a list of lists"),
        ({**AWQ, "modules_to_not_convert": "lm_head"}, "RTPJ-3202 .*a list of words"),
        (compressed(config_groups={}), "RTPJ-3202 .*config_groups"),
        (compressed(group__targets=[]), "RTPJ-3202 .*targets"),
    ],
)  # fmt: skip
def test_what_no_config_may_say(config, words):
    with pytest.raises(CheckpointError, match=words):
        read_quantization(Fields({"quantization_config": {"a": 1, **config}}))


def test_groups_that_do_not_divide_a_row():
    spec = read_spec({**with_quantization(GPTQ), "intermediate_size": 320})
    with pytest.raises(CheckpointError, match=r"RTPJ-3206 .*groups of 128.*\[256, 320\].*whole"):
        sizes_of(spec)


def test_rows_that_do_not_fill_words():
    spec = read_spec({**with_quantization({**GPTQ, "group_size": -1}), "intermediate_size": 84})
    with pytest.raises(CheckpointError, match=r"RTPJ-3206 .*\[84, 256\]: 8 numbers share a word"):
        sizes_of(spec)


def sizes_of(spec) -> tuple[int, int]:
    """Count the bytes of all that a model holds, and what the plan says of them."""
    bones = skeleton(spec, Target("cpu", jnp.dtype("float32")))
    held = sum(math.prod(shape.shape) * shape.dtype.itemsize for shape in bones.held.values())
    return held, spec.weight_bytes(4, *matrix_bytes(spec, 4, packed=False))


@pytest.mark.parametrize("name", CASES)
def test_the_plan_knows_the_bytes_of_a_quantized_model(name):
    held, planned = sizes_of(read_spec(with_quantization(CASES[name].config)))
    assert planned == held


@pytest.mark.parametrize("name", CASES)
def test_every_stored_part_has_a_row(name):
    spec = read_spec(with_quantization(CASES[name].config))
    bones = skeleton(spec, Target("cpu", jnp.dtype("bfloat16")))
    rows = architecture(spec.architecture).weight_table(spec).rows
    assert {row.target if row.target in bones.stored else row.parameter for row in rows} == set(
        bones.stored
    )
