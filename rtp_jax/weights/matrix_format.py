"""How does one quantized matrix lie in a checkpoint, in three words?  Read next: `quantized.py`."""

from typing import NamedTuple

from rtp_jax.quant.schemes import Scheme


class MatrixFormat(NamedTuple):
    """How one matrix lies in a checkpoint."""

    layout: str  # one of `quantized.LAYOUTS`
    scheme: Scheme  # of its numbers, with the groups that the checkpoint has
    ordered: bool = False  # groups were made along another order of the columns (act-order)
