"""What a model is built for: a platform, a dtype, an encoding of its matrices."""

from typing import NamedTuple

import numpy as np

from rtp_jax.quant.schemes import PLAIN, Scheme


class Target(NamedTuple):
    """The choices that layers are built with; the same for all layers of a model."""

    platform: str  # "cpu" or "cuda": what programs are compiled for
    dtype: np.dtype  # of activations, and of weights that are not quantized
    attention: str = "auto"  # implementation of paged attention
    matmul: str = "auto"  # implementation of products with weights
    scheme: Scheme = PLAIN  # of the matrices in layers
    head_scheme: Scheme = PLAIN  # of the matrix that makes logits
    native: str | None = None  # level of the C++ kernels that layers may call; None: none
    # Kernels may leave out the padding behind a step's tokens. Not where the arithmetic of a token
    # must never depend on how many others there are.
    skip_padding: bool = True
    kv_groups: tuple[int, ...] = ()  # for each layer the KV group that it is in; (): all in one

    @property
    def unrolled(self) -> bool:
        """Whether every layer has arrays of its own, one after the other in the program.

        On a GPU XLA copies each layer out of a stack that is scanned over, and a step reads its
        weights once, so that would be three times the traffic.  On a CPU the native kernels find
        their layer in the stack, and a scan compiles in a quarter of the time.
        """
        return self.platform == "cuda"
