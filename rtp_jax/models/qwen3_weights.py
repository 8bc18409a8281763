"""Which tensor of a Hugging Face Qwen3 checkpoint becomes which parameter."""

from rtp_jax.models.llama_weights import LAYER, OUTPUT_BIAS, QKV_BIAS, dense_table
from rtp_jax.models.spec import ModelSpec
from rtp_jax.weights.table import Weight, WeightTable

# fmt: off
HEAD_NORMS = [
    Weight("self_attn.q_norm.weight",         "attention.query_norm.scale"),
    Weight("self_attn.k_norm.weight",         "attention.key_norm.scale"),
]
# fmt: on


def weight_table(spec: ModelSpec) -> WeightTable:
    """List the tensors of a Qwen3 checkpoint: Llama's, and the norms of queries and keys."""
    biases = spec.qkv_bias * QKV_BIAS + spec.output_bias * OUTPUT_BIAS
    return dense_table(spec, LAYER + HEAD_NORMS + biases)
