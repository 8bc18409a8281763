"""Configs: what is read, and what is refused with the field, its value and what is allowed."""

import math

import jax.numpy as jnp
import pytest

from rtp_jax.errors import CheckpointError
from rtp_jax.layers.rope_frequencies import Linear, Unscaled, Yarn
from rtp_jax.layers.target import Target
from rtp_jax.models.registry import ARCHITECTURES, architecture, read_spec
from rtp_jax.models.skeleton import skeleton
from rtp_jax.quant.kv_schemes import kv_layers
from tests.tiny_model import LLAMA

MISTRAL, QWEN2, QWEN3 = "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"


def config(family: str = "LlamaForCausalLM", **changes) -> dict:
    """Write a config; a change to None takes the field away."""
    changed = {**LLAMA, "architectures": [family], **changes}
    return {name: value for name, value in changed.items() if value is not None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_spec_skeleton_and_table_agree(family, bias, tied):
    spec = read_spec(config(family, attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied))
    bones = skeleton(spec, Target("cpu", jnp.dtype("bfloat16")))
    sizes = [math.prod(parameter.shape) for parameter in bones.held.values()]
    assert sum(sizes) == spec.num_parameters
    assert spec.weight_bytes(2) == 2 * sum(sizes)
    assert {p.dtype for p in bones.held.values()} == {jnp.dtype("bfloat16")}
    assert all(len(bones.axes[path]) == len(p.shape) for path, p in bones.held.items())
    table = architecture(family).weight_table(spec)
    assert {row.parameter for row in table.rows} == set(bones.stored)


def test_sizes_of_a_spec():
    spec = read_spec(config())
    assert spec.kv_page_shape(16) == (3, 2, 2, 16, 16)
    per_token = kv_layers(3, "float32").bytes_per_token(2, 16)
    assert per_token * 16 == math.prod(spec.kv_page_shape(16)) * 4
    assert (spec.max_positions, spec.windows, spec.dtype) == (512, (None,) * 3, "float32")


def test_token_ids_are_read():
    assert read_spec(config(eos_token_id=7, bos_token_id=1)).eos_token_ids == (7,)
    assert read_spec(config(eos_token_id=[7, 8])).eos_token_ids == (7, 8)
    assert read_spec(config()).bos_token_id is None


@pytest.mark.parametrize("field", ["dtype", "torch_dtype"])
def test_both_names_of_the_dtype(field):
    assert read_spec(config(**{field: "bfloat16"})).dtype == "bfloat16"


def test_old_llama_has_as_many_kv_heads_as_heads():
    assert read_spec(config(num_key_value_heads=None)).num_kv_heads == 4


def test_qwen3_heads_are_128_wide_by_default():
    assert read_spec(config(QWEN3)).head_dim == 128
    assert read_spec(config(QWEN3, head_dim=32)).head_dim == 32


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@pytest.mark.parametrize(
    ("rope", "kind", "max_positions"),
    [
        ({}, Unscaled, 512),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, Linear, 1024),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, Unscaled, 512),
        ({"rope_scaling": YARN}, Yarn, 2048),
        ({"rope_parameters": YARN}, Yarn, 2048),
    ],
)
def test_rope_and_how_far_it_reaches(rope, kind, max_positions):
    spec = read_spec(config(rope_theta=5e5, **rope))
    assert isinstance(spec.rope.scaling, kind)
    assert (spec.rope.theta, spec.max_positions) == (5e5, max_positions)


def test_the_newer_place_of_theta_wins():
    parameters = {"rope_type": "default", "rope_theta": 3e5}
    assert read_spec(config(rope_theta=1e4, rope_parameters=parameters)).rope.theta == 3e5


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"sliding_window": 8}, (None, None, None)),  # not asked for
        (
            {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
            (None, None, 8),
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            (8, None, 8),
        ),
    ],
)
@pytest.mark.parametrize("family", [QWEN2, QWEN3])
def test_windows_of_qwen(family, changes, windows):
    assert read_spec(config(family, **changes)).windows == windows


def test_windows_of_mistral():
    assert read_spec(config(MISTRAL, sliding_window=8)).windows == (8, 8, 8)
    assert read_spec(config(MISTRAL)).windows == (None, None, None)


REFUSED = [
    (config(hidden_size=None), "RTPJ-3201", "no hidden_size"),
    (config(MISTRAL, num_key_value_heads=None), "RTPJ-3201", "no num_key_value_heads"),
    (config(rope_scaling={"type": "linear"}), "RTPJ-3201", r"no rope_scaling\.factor"),
    (config(vocab_size="100"), "RTPJ-3202", "vocab_size is '100'.*whole number"),
    (config(vocab_size=True), "RTPJ-3202", "vocab_size is 'True'"),
    (config(num_hidden_layers=0), "RTPJ-3202", "num_hidden_layers is '0'.*from 1"),
    (config(hidden_size=2**40), "RTPJ-3202", "hidden_size"),
    (config(rms_norm_eps=float("nan")), "RTPJ-3202", "rms_norm_eps is 'nan'"),
    (config(tie_word_embeddings=1), "RTPJ-3202", "tie_word_embeddings.*true or false"),
    (config(rope_scaling="yarn"), "RTPJ-3202", "rope_scaling.*a mapping"),
    (config(eos_token_id=["a"]), "RTPJ-3202", "eos_token_id"),
    (config(rope_scaling={"type": "linear", "factor": 0.5}), "RTPJ-3202", "factor is '0.5'"),
    ({**LLAMA, "architectures": []}, "RTPJ-3202", "architectures"),
    (config(num_key_value_heads=3), "RTPJ-3203", "num_key_value_heads=3"),
    (config(num_attention_heads=5, num_key_value_heads=1), "RTPJ-3203", "hidden_size.*5 heads"),
    (config(head_dim=15), "RTPJ-3203", "head_dim.*no pairs"),
    (
        config(QWEN2, use_sliding_window=True, sliding_window=4, layer_types=["full_attention"]),
        "RTPJ-3203",
        "layer_types.*num_hidden_layers is 3",
    ),
    (config(hidden_act="gelu"), "RTPJ-3204", "hidden_act is 'gelu'.*Supported: silu"),
    (config(rope_scaling={"rope_type": "longrope"}), "RTPJ-3204", "'longrope'.*yarn"),
    (config(partial_rotary_factor=0.5), "RTPJ-3204", "partial_rotary_factor"),
    (config(quantization_config={"quant_method": "hqq"}), "RTPJ-3204", "quant_method is 'hqq'"),
    (config(sliding_window=8), "RTPJ-3204", "sliding_window"),
    (config(torch_dtype="float8_e4m3fn"), "RTPJ-3204", "torch_dtype.*bfloat16"),
    (config("GPT2LMHeadModel"), "RTPJ-3205", "GPT2LMHeadModel.*Qwen3ForCausalLM"),
]


@pytest.mark.parametrize(("bad", "error_id", "words"), REFUSED)
def test_a_bad_config_is_refused(bad, error_id, words):
    with pytest.raises(CheckpointError, match=words) as raised:
        read_spec(bad)
    assert raised.value.id == error_id
    assert raised.value.field
