"""Which tensor of a Hugging Face Qwen2 checkpoint becomes which parameter."""

from rtp_jax.models.llama_weights import LAYER, QKV_BIAS, dense_table
from rtp_jax.models.spec import ModelSpec
from rtp_jax.weights.table import WeightTable


def weight_table(spec: ModelSpec) -> WeightTable:
    """List the tensors of a Qwen2 checkpoint: Llama's, and biases of queries, keys and values."""
    return dense_table(spec, LAYER + QKV_BIAS)
