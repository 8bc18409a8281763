"""Which matrices of a checkpoint come quantized, and how large are they?  Known from its config."""

from typing import NamedTuple

from rtp_jax.layers.matrix import held
from rtp_jax.models.registry import architecture
from rtp_jax.models.spec import ModelSpec
from rtp_jax.weights.matrix_format import MatrixFormat

HEAD = "unembedding.table"  # of a model whose head is not the embedding
SCALE, ZERO, PLACE = 4, 1, 4  # bytes of a scale, of a zero point, and of a column's place


class MatrixBytes(NamedTuple):
    """Bytes of a number, on average."""

    layers: float
    head: float


def matrix_bytes(spec: ModelSpec, itemsize: int) -> MatrixBytes:
    """Average over all matrices of the layers; numbers that are not quantized take `itemsize`."""
    kinds = _kinds(spec)
    numbers = total = 0.0
    for layer in range(spec.num_layers):
        for module, (outer, inner) in spec.matrix_shapes.items():
            kind = kinds.get(f"layers.{layer}.{module}.kernel")
            numbers += outer * inner
            total += outer * inner * _of_number(kind, outer, inner, itemsize)
    head = kinds.get(HEAD)
    return MatrixBytes(
        total / numbers, _of_number(head, spec.vocab_size, spec.hidden_size, itemsize)
    )


def head_is_quantized(spec: ModelSpec) -> bool:
    """Whether the matrix that makes logits comes quantized."""
    return HEAD in _kinds(spec)


def _kinds(spec: ModelSpec) -> dict[str, MatrixFormat]:
    """Give the format of each quantized matrix, by its path."""
    rows = architecture(spec.architecture).weight_table(spec).rows
    return {row.target.rpartition(".")[0]: row.kind for row in rows if row.kind is not None}


def _of_number(kind: MatrixFormat | None, outer: int, inner: int, itemsize: int) -> float:
    if kind is None:
        return float(itemsize)
    scheme = held(kind.scheme, inner)
    beside = (SCALE + ZERO * scheme.zeros) / (scheme.group or inner)
    return scheme.bits / 8 + beside + kind.ordered * PLACE / outer
