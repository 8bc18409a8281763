"""Which matrices of a checkpoint come quantized, and how large are they?  Known from its config."""

from typing import NamedTuple

from rtp_jax.layers.matrix import held
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.quant.held_bytes import held_bytes
from rtp_jax.quant.schemes import PLAIN
from rtp_jax.weights.matrix_format import MatrixFormat

HEAD = "unembedding.table"  # of a model whose head is not the embedding
PLACE = 4  # bytes of a column's place


class MatrixBytes(NamedTuple):
    """Bytes of all matrices of the layers, and of the one that makes logits."""

    layers: int
    head: int


def matrix_bytes(spec: ModelSpec, itemsize: int, *, packed: bool) -> MatrixBytes:
    """Count the bytes of matrices as they are held; plain numbers take `itemsize`.

    `packed` says whether the native kernels are to multiply by them.
    """
    kinds = _kinds(spec)

    def of(path: str, outer: int, inner: int) -> int:
        kind = kinds.get(path)
        scheme = PLAIN if kind is None else held(kind.scheme, inner)
        places = 0 if kind is None else kind.ordered * PLACE * inner
        return held_bytes(scheme, outer, inner, itemsize, packed=packed) + places

    layers = sum(
        of(f"layers.{layer}.{module}.kernel", *shape)
        for layer in range(spec.num_layers)
        for module, shape in spec.matrix_shapes.items()
    )
    return MatrixBytes(layers, of(HEAD, spec.vocab_size, spec.hidden_size))


def head_is_quantized(spec: ModelSpec) -> bool:
    """Whether the matrix that makes logits comes quantized."""
    return HEAD in _kinds(spec)


def _kinds(spec: ModelSpec) -> dict[str, MatrixFormat]:
    """Give the format of each quantized matrix, by its path."""
    rows = architecture(spec.architecture).weight_table(spec).rows
    return {row.target.rpartition(".")[0]: row.kind for row in rows if row.kind is not None}
