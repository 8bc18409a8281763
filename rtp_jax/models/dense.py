"""The dense decoder that Llama and its relatives are: its modules.

Apart from its config (`dense_fields.py`), because flax is slow to import, and a start that
finds its programs compiled builds no modules.
"""

from functools import partial

from rtp_jax.layers.attention import Attention, Heads
from rtp_jax.layers.decoder import Decoder, DecoderLayer, Positions
from rtp_jax.layers.embedding import Embedding
from rtp_jax.layers.mlp import GatedMLP
from rtp_jax.layers.norm import RMSNorm
from rtp_jax.layers.target import Target
from rtp_jax.models.spec import ModelSpec


def build_dense(spec: ModelSpec, target: Target) -> Decoder:
    """Build the modules of a dense decoder; call it under `nnx.eval_shape`."""
    heads = Heads(spec.hidden_size, spec.num_heads, spec.num_kv_heads, spec.head_dim)

    def norm(axis: str = "embed", size: int = spec.hidden_size) -> RMSNorm:
        return RMSNorm((axis, size), eps=spec.norm_eps, target=target)

    def layer(here: Target) -> DecoderLayer:
        attention = Attention(
            heads,
            target=here.at("attention"),
            bias=spec.qkv_bias,
            output_bias=spec.output_bias,
            make_norm=(lambda: norm("head_dim", spec.head_dim)) if spec.head_norm else None,
        )
        sizes = spec.hidden_size, spec.mlp_size
        mlp = GatedMLP(*sizes, bias=spec.mlp_bias, target=here.at("mlp"))
        return DecoderLayer(attention, mlp, (norm(), norm()))

    table = partial(Embedding, spec.vocab_size, spec.hidden_size)
    return Decoder(
        table(is_head=spec.tied, target=target.at("embedding")),
        layer,
        norm(),
        None if spec.tied else table(is_head=True, target=target.at("unembedding")),
        Positions(spec.rope, spec.windows),
        target=target,
    )
