"""Which arrays hold KV: for each KV group pages, and scales where its scheme has them.

Read next: `kernels/pages.py` for what lies where, `quant/kv_schemes.py` for what a group is.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rtp_jax.kernels.pages import KVGroup, storage_dtype
from rtp_jax.models.spec import ModelSpec
from rtp_jax.parallel.devices import spec_of
from rtp_jax.quant.kv_schemes import KVLayers

# How devices share pages, of the KV arrays or copies of some: each has those of its KV heads.
KV_SPEC = PartitionSpec(None, None, None, *spec_of(("kv_heads",)))


def kv_arrays(
    spec: ModelSpec, kv: KVLayers, *, num_pages: int, page_size: int
) -> tuple[KVGroup, ...]:
    """Describe the arrays of each KV group; nothing is allocated."""
    groups = []
    for group, scheme in enumerate(kv.groups):
        shape = (num_pages, *spec.kv_page_shape(page_size, kv.layers_in(group)))
        pages = jax.ShapeDtypeStruct(shape, storage_dtype(jnp.dtype(scheme.dtype)))
        scales = jax.ShapeDtypeStruct(shape[:-1], jnp.float32) if scheme.scale_bytes else None
        groups.append(KVGroup._make((pages, scales, None)))
    return tuple(groups)
