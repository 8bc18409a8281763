"""What a model is built for: a platform, a dtype, an encoding of its matrices."""

from typing import NamedTuple

import numpy as np

from rtp_jax.parallel.axes import MeshShape
from rtp_jax.quant.schemes import PLAIN, Scheme
from rtp_jax.weights.matrix_format import MatrixFormat


class Target(NamedTuple):
    """The choices that layers are built with; the same for all layers of a model, but the path."""

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
    # What the checkpoint says of its matrices: path of a module to format, for the quantized ones.
    formats: tuple[tuple[str, MatrixFormat], ...] = ()
    own_arrays: bool = False  # of each layer, where a CPU would stack them: see `unrolled`
    mesh: MeshShape = MeshShape()  # the devices that share the model; layers hold one's part
    path: str = ""  # of the module that is being built

    def at(self, name: str) -> "Target":
        """Give the target of a module inside the one that is being built."""
        return self._replace(path=f"{self.path}.{name}" if self.path else name)

    @property
    def format(self) -> MatrixFormat | None:
        """The format of this module's matrix in the checkpoint; None: plain numbers."""
        return dict(self.formats).get(self.path)

    @property
    def unrolled(self) -> bool:
        """Whether every layer has arrays of its own, one after the other in the program.

        On a GPU XLA copies each layer out of a stack that is scanned over, and a step reads its
        weights once, so that would be three times the traffic.  On a CPU the native kernels find
        their layer in the stack, and a scan compiles in a quarter of the time; but layers of
        several kinds make no stack, and float8 that XLA decodes takes several times as long in a
        loop.
        """
        return self.platform == "cuda" or self.own_arrays
