"""What a kernel of paged attention is asked before it is chosen: every static fact of a call.

Read next: `reference.py`.

Every kernel file of this folder has `obstacle(call)`, which answers with a reason in words, or
None, and `paged_attention(query, pages, layer, step, *, scale, sliding_window, soft_cap, sinks,
scales)`, which is called only where there is no obstacle.
"""

from typing import NamedTuple

import jax.numpy as jnp

SLIDING_WINDOW = "sliding window"
SOFT_CAP = "soft cap"
SINKS = "sinks"
SCALES = "scales"  # pages hold int8 or float8 numbers, with a scale for each token and KV head


class AttentionShape(NamedTuple):
    """One call of paged attention, as far as it is known while tracing.

    A latent (MLA) variant will be told apart here: its pages have one KV head without a value half,
    so `kv_heads` is 1 and a field for the width of the latent joins, with a default.
    """

    platform: str  # what the program is compiled for: "cpu" or "cuda"
    dtype: jnp.dtype  # of the query and the result
    storage: jnp.dtype  # of the pages: uint16 is bfloat16 bits, uint8 is float8_e4m3fn bits
    head_dim: int
    page_size: int  # tokens
    heads: int
    kv_heads: int  # of which `heads` is a multiple
    features: frozenset[str]  # those in use: the names above

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads
