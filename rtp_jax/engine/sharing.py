"""How do several devices share a model, and what does one of them hold?

Matrices, embedding and heads are divided (`parallel/axes.py`), norms are held whole, and KV heads
are repeated where there are more devices than heads.
"""

from dataclasses import replace

from rtp_jax.errors import InvalidArgument
from rtp_jax.models.spec import ModelSpec
from rtp_jax.parallel.axes import MeshShape, mesh_shape
from rtp_jax.runner.workspace import ModelMemory


def mesh_of(spec: ModelSpec, size: int) -> MeshShape:
    """Arrange so many devices for a model.

    Raises:
      InvalidArgument: RTPJ-1106, the model does not divide into so many parts.
    """
    shape, reasons = mesh_shape(size, spec.num_kv_heads), _uneven(spec, size)
    if shape is not None and not reasons:
        return shape
    fitting = [str(fewer) for fewer in range(1, size) if not _uneven(spec, fewer)]
    raise InvalidArgument(
        f"RTPJ-1106 PARTS_UNEVEN: tensor_parallel_size={size} was asked for, and the model has"
        f" {', '.join(reasons)}, which so many devices cannot share evenly. Set"
        f" tensor_parallel_size to {' or '.join(fitting)}.",
        field="tensor_parallel_size",
    )


def _uneven(spec: ModelSpec, size: int) -> list[str]:
    """List what does not divide into so many parts."""
    sizes = {
        "query heads": spec.num_heads,
        "features in its MLP": spec.mlp_size,
        "ids in its vocabulary": spec.vocab_size,
    }
    uneven = [f"{number} {what}" for what, number in sizes.items() if number % size]
    if mesh_shape(size, spec.num_kv_heads) is None:
        uneven.append(f"{spec.num_kv_heads} KV heads")
    return uneven


def share(whole: ModelMemory, spec: ModelSpec, shape: MeshShape) -> ModelMemory:
    """Describe the part of a model that one device holds, if it has a memory of its own."""
    kv_heads = shape.share("kv_heads", spec.num_kv_heads)
    norms = spec.num_layers * (2 * spec.hidden_size + 2 * spec.head_norm * spec.head_dim)
    norm_bytes = (norms + spec.hidden_size) * whole.itemsize
    kv_numbers = spec.num_layers * 2 * spec.hidden_size * spec.num_kv_heads * spec.head_dim
    per_number = whole.weight_bytes / spec.num_parameters
    repeated = (shape.copies - 1) * kv_numbers * per_number  # KV heads that others hold too
    divided = whole.weight_bytes - norm_bytes + repeated
    weights = round(norm_bytes + divided / shape.size)
    return replace(
        whole,
        weight_bytes=whole.weight_bytes if shape.size == 1 else weights,
        num_heads=shape.share("heads", spec.num_heads),
        num_kv_heads=kv_heads,
        mlp_size=shape.share("mlp", spec.mlp_size),
    )


def in_one_memory(whole: ModelMemory, spec: ModelSpec, shape: MeshShape) -> ModelMemory:
    """Describe what all devices hold together, where the memory of one is that of all."""
    one = share(whole, spec, shape)
    weights = whole.weight_bytes if shape.size == 1 else one.weight_bytes * shape.size
    return replace(one, weight_bytes=weights, num_devices=shape.size)
