"""Which tensor of a Hugging Face Llama or Mistral checkpoint becomes which parameter."""

from functools import partial

from rtp_jax.models.spec import ModelSpec
from rtp_jax.weights.matrix_format import MatrixFormat
from rtp_jax.weights.modules import Quantization
from rtp_jax.weights.quantized import in_parts
from rtp_jax.weights.table import Weight, WeightTable, in_each_layer

# fmt: off
ENDS = [
    Weight("model.embed_tokens.weight",       "embedding.table"),
    Weight("model.norm.weight",               "final_norm.scale"),
]
HEAD = [
    Weight("lm_head.weight",                  "unembedding.table"),
]
LAYER = [
    Weight("input_layernorm.weight",          "attention_norm.scale"),
    Weight("self_attn.q_proj.weight",         "attention.query.kernel"),
    Weight("self_attn.k_proj.weight",         "attention.key.kernel"),
    Weight("self_attn.v_proj.weight",         "attention.value.kernel"),
    Weight("self_attn.o_proj.weight",         "attention.output.kernel"),
    Weight("post_attention_layernorm.weight", "mlp_norm.scale"),
    Weight("mlp.gate_proj.weight",            "mlp.gate.kernel"),
    Weight("mlp.up_proj.weight",              "mlp.up.kernel"),
    Weight("mlp.down_proj.weight",            "mlp.down.kernel"),
]
QKV_BIAS = [
    Weight("self_attn.q_proj.bias",           "attention.query.bias"),
    Weight("self_attn.k_proj.bias",           "attention.key.bias"),
    Weight("self_attn.v_proj.bias",           "attention.value.bias"),
]
OUTPUT_BIAS = [
    Weight("self_attn.o_proj.bias",           "attention.output.bias"),
]
MLP_BIAS = [
    Weight("mlp.gate_proj.bias",              "mlp.gate.bias"),
    Weight("mlp.up_proj.bias",                "mlp.up.bias"),
    Weight("mlp.down_proj.bias",              "mlp.down.bias"),
]
# fmt: on
BUFFERS = ("*.rotary_emb.inv_freq",)  # old checkpoints store what follows from the config


def weight_table(spec: ModelSpec) -> WeightTable:
    """List the tensors of a Llama or Mistral checkpoint."""
    layer = LAYER + spec.qkv_bias * QKV_BIAS + spec.output_bias * OUTPUT_BIAS
    return dense_table(spec, layer + spec.mlp_bias * MLP_BIAS)


def dense_table(spec: ModelSpec, layer: list[Weight]) -> WeightTable:
    """Put the rows of each layer between the ends; a tied head is stored once or ignored.

    Matrices that the checkpoint quantized have a row for each of their tensors.
    """
    rows = in_each_layer("model.layers.{i}", "layers.{i}", layer, spec.num_layers)
    rows = in_parts(ENDS + HEAD * (not spec.tied) + rows, partial(_format, spec.quantization))
    return WeightTable(rows, ignored=("lm_head.weight", *BUFFERS) if spec.tied else BUFFERS)


def _format(quantization: Quantization | None, row: Weight) -> MatrixFormat | None:
    """Say how the checkpoint has the matrix of a linear map; None: as plain numbers."""
    is_head = row in HEAD
    if quantization is None or not (is_head or row.target.endswith(".kernel")):
        return None
    return quantization.format_of(row.source.removesuffix(".weight"), is_head=is_head)
