"""Is this the same model as before?  A fingerprint that costs a few small reads.

It names a model in the keys of KV pages and of compiled programs.  Two fine-tuned models have the
same config and the same headers, and mixing up their KV pages would be a silent error: so a few
bytes from the middle of every tensor are part of it.

Read next: `checkpoint.py`.
"""

import hashlib
from pathlib import Path

from rtp_jax.weights.checkpoint import read_checkpoint
from rtp_jax.weights.files import inside, open_regular, read_small, read_up_to
from rtp_jax.weights.safetensors import Header

SAMPLE = 64  # bytes of each tensor


def fingerprint(folder: Path) -> str:
    """Give 32 hexadecimal digits for config.json, all headers, sizes and samples of a model."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(hashlib.blake2b(read_small(inside(folder, "config.json"))).digest())
    for header in read_checkpoint(folder).files:
        digest.update(header.digest + header.size.to_bytes(8, "little") + _samples(header))
    return digest.hexdigest()


def _samples(header: Header) -> bytes:
    """Hash the bytes in the middle of each tensor."""
    digest = hashlib.blake2b(digest_size=32)
    with open_regular(header.path) as file:
        for tensor in header.tensors:
            count = min(SAMPLE, tensor.end - tensor.begin)
            start = header.data_start + (tensor.begin + tensor.end - count) // 2
            file.seek(start)
            digest.update(read_up_to(file, header.path, count))
    return digest.digest()
