"""What does a model look like?  Sizes and options as plain data, known before any weight is read.

Read from `config.json` by the `parse` of an architecture.  No jax here: the memory plan and the
command line use it without a device.  Read next: `llama.py`.
"""

from dataclasses import dataclass

from rtp_jax.layers.rope_frequencies import Rope
from rtp_jax.weights.modules import Quantization


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A dense decoder: what decides its shapes and its arithmetic."""

    architecture: str  # the name in `config.json`
    vocab_size: int
    hidden_size: int
    num_layers: int
    mlp_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    max_positions: int  # what the rotary embedding supports
    windows: tuple[int | None, ...]  # tokens that each layer looks back, itself included
    dtype: str  # of the checkpoint: float32, bfloat16 or float16
    tied: bool  # the embedding is the head as well
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False  # queries and keys are normalised in each head
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    quantization: Quantization | None = None  # of the checkpoint; None: its numbers are plain

    @property
    def num_parameters(self) -> int:
        """Numbers in all weights; a tied head counts once."""
        ends = self.vocab_size * self.hidden_size * (1 if self.tied else 2) + self.hidden_size
        return ends + self.num_layers * self._layer_parameters

    @property
    def matrix_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes [outer, inner] of a layer's matrices, by the paths of their modules."""
        queries, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        hidden, mlp = self.hidden_size, self.mlp_size
        return {
            "attention.query": (queries, hidden),
            "attention.key": (kv, hidden),
            "attention.value": (kv, hidden),
            "attention.output": (hidden, queries),
            "mlp.gate": (mlp, hidden),
            "mlp.up": (mlp, hidden),
            "mlp.down": (hidden, mlp),
        }

    @property
    def _matrix_parameters(self) -> int:
        return sum(outer * inner for outer, inner in self.matrix_shapes.values())

    @property
    def _layer_parameters(self) -> int:
        queries, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        biases = self.qkv_bias * (queries + 2 * kv) + self.output_bias * self.hidden_size
        biases += self.mlp_bias * (2 * self.mlp_size + self.hidden_size)
        norms = self.head_norm * 2 * self.head_dim + 2 * self.hidden_size
        return self._matrix_parameters + biases + norms

    def weight_bytes(
        self,
        itemsize: int,
        matrix_bytes: int | None = None,
        head_bytes: int | None = None,
    ) -> int:
        """Bytes of all weights: `itemsize` for each number.

        All matrices of the layers take `matrix_bytes`, and the matrix that makes logits takes
        `head_bytes`, where these are given.
        """
        head = self.vocab_size * self.hidden_size
        matrices = self.num_layers * self._matrix_parameters
        plain = self.num_parameters - head - matrices
        matrix_bytes = matrices * itemsize if matrix_bytes is None else matrix_bytes
        head_bytes = head * itemsize if head_bytes is None else head_bytes
        return plain * itemsize + matrix_bytes + head_bytes

    def kv_page_shape(self, page_size: int, num_layers: int | None = None) -> tuple[int, ...]:
        """Shape of a page of a KV group: [layers, 2, kv_heads, page_size, head_dim]; None: all."""
        return (num_layers or self.num_layers, 2, self.num_kv_heads, page_size, self.head_dim)
